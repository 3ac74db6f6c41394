"""Pages for people: each is one self-contained HTML file, without network access and without scripts."""
