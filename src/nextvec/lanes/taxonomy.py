"""The frozen taxonomy of chunks: 16 domains, 32 tasks and 64 modifiers in a code of 16 bits.

Names and numbers are those of the predecessor's schema. The predecessor had five contradictory tables and two bit
layouts; nextvec has only this table. A number never changes its meaning. Descriptions are sentences for an encoder
and for people.
"""

from dataclasses import dataclass

from nextvec.errors import DataError

DOMAIN_SHIFT, TASK_SHIFT, MODIFIER_SHIFT = 12, 7, 1  # bits 15-12, 11-7, 6-1; bit 0 is spare


@dataclass(frozen=True)
class Term:
    """A name and its meaning.

    Attributes:
        name: as people write it.
        description: one sentence.
        examples: further sentences of the same meaning, which an encoder reads beside the description.
    """

    name: str
    description: str
    examples: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        return (self.description, *self.examples)


@dataclass(frozen=True)
class Code:
    """A domain, a task and a modifier, by number.

    Raises:
        DataError: a number that its table does not have.
    """

    domain: int
    task: int
    modifier: int

    def __post_init__(self) -> None:
        for name, terms in (("domain", DOMAINS), ("task", TASKS), ("modifier", MODIFIERS)):
            number = getattr(self, name)
            if not 0 <= number < len(terms):
                raise DataError(f"there is no {name} {number}; they are counted from 0 to {len(terms) - 1}")

    def pack(self) -> int:
        """The code in 16 bits, the spare one unset."""
        return self.domain << DOMAIN_SHIFT | self.task << TASK_SHIFT | self.modifier << MODIFIER_SHIFT

    @staticmethod
    def unpack(bits: int) -> "Code":
        """What :meth:`pack` packed.

        Raises:
            DataError: not 16 bits, or the spare one is set.
        """
        if not 0 <= bits < 1 << 16:
            raise DataError(f"{bits} is not a code: a code has 16 bits")
        if bits & 1:
            raise DataError(f"{bits:#06x} is not a code: bit 0 is spare and must be 0; was it packed in another layout?")
        return Code(bits >> DOMAIN_SHIFT, bits >> TASK_SHIFT & len(TASKS) - 1, bits >> MODIFIER_SHIFT & len(MODIFIERS) - 1)

    def __str__(self) -> str:
        return f"{DOMAINS[self.domain].name} / {TASKS[self.task].name} / {MODIFIERS[self.modifier].name}"


def _terms(table: str) -> tuple[Term, ...]:
    """One line a term, its name before the first colon."""
    pairs = (line.split(": ", 1) for line in table.strip().splitlines())
    return tuple(Term(name, description) for name, description in pairs)


DOMAINS = _terms("""
Science: Natural science: physics, chemistry, biology and astronomy, observations, experiments and the laws of nature.
Mathematics: Mathematics: numbers, equations, geometry, algebra, theorems and their proofs.
Technology: Technology: devices, electronics, communication, hardware, inventions and the industry that makes them.
Engineering: Engineering: the design and construction of machines, vehicles, bridges, materials and power plants.
Medicine: Medicine: diseases, symptoms, patients, doctors, drugs, surgery and public health.
Psychology: Psychology: the mind, behaviour, perception, memory, emotion, personality and mental disorders.
Philosophy: Philosophy: ethics, knowledge, existence, reason, religion and what the great thinkers argued.
History: History: past events, wars, empires, kings, dynasties, dates and how nations came to be.
Literature: Literature: novels, stories, poems and plays; what characters say, feel and do.
Art: Art: painting, sculpture, architecture, music, dance, film and the people who make them.
Economics: Economics: markets, money, prices, trade, companies, labour, taxes and banks.
Law: Law: courts, statutes, judges, lawyers, the constitution, crimes, rights and the arguments of a case.
Politics: Politics: governments, elections, parties, presidents, parliaments, policy and speeches to citizens.
Education: Education: schools, universities, teachers, students, curricula and how people learn.
Environment: Environment: climate, ecosystems, animals and plants, landscapes, rivers, pollution and conservation.
Software: Software: programs, source code, programming languages, functions, operating systems and data structures.
""")

TASKS = _terms("""
Fact Retrieval: Finding a stated fact.
Definition Matching: Matching a term with its definition.
Analogical Reasoning: Reasoning from one case to a similar one.
Causal Inference: Finding out what causes what.
Classification: Sorting things into given classes.
Entity Recognition: Finding the names of people, places and things.
Relationship Extraction: Finding how named things are related.
Schema Adherence: Writing what follows a given schema.
Summarization: Saying a long text in a few sentences.
Paraphrasing: Saying the same in other words.
Translation: Saying the same in another language.
Sentiment Analysis: Telling what somebody feels about something.
Argument Evaluation: Judging whether an argument holds.
Hypothesis Testing: Testing a hypothesis against evidence.
Code Generation: Writing a program that does what is asked.
Function Calling: Calling a function with the right arguments.
Mathematical Proof: Proving a statement from axioms and theorems.
Diagram Interpretation: Reading a diagram, chart or figure.
Temporal Reasoning: Reasoning about when things happen and in which order.
Spatial Reasoning: Reasoning about where things are and how they fit.
Ethical Evaluation: Judging whether an act is right.
Policy Recommendation: Advising what rule or measure to adopt.
Roleplay Simulation: Speaking as somebody else would.
Creative Writing: Inventing a story, a scene or a poem.
Instruction Following: Doing what an instruction says, step by step.
Error Detection: Finding what is wrong.
Output Repair: Mending an answer that is malformed or wrong.
Question Generation: Asking questions that a text answers.
Conceptual Mapping: Laying out concepts and how they hang together.
Knowledge Distillation: Handing on the essence of what is known.
Tool Use: Using a tool to get something done.
Prompt Completion: Going on from where a text breaks off.
""")

MODIFIERS = _terms("""
Biochemical: About the chemistry of living things.
Evolutionary: About descent, variation and selection.
Computational: About what is computed and how.
Logical: About what follows from what.
Ethical: About right and wrong.
Historical: About how it was in the past.
Legal: About what the law says.
Philosophical: About first principles.
Emotional: About what is felt.
Technical: About how a thing works in detail.
Creative: About what is new and imagined.
Abstract: About ideas rather than things.
Concrete: About particular things rather than ideas.
Visual: About what is seen.
Auditory: About what is heard.
Spatial: About place, shape and distance.
Temporal: About time, order and duration.
Quantitative: About amounts, in numbers.
Qualitative: About kinds and properties, without numbers.
Procedural: About the steps in which something is done.
Declarative: About what is the case.
Comparative: About likeness and difference.
Analogical: About one thing in terms of another.
Causal: About causes and effects.
Hypothetical: About what would be if.
Experimental: About trials and their results.
Narrative: About what happened, told as a story.
Descriptive: About what something is like.
Prescriptive: About what should be done.
Diagnostic: About what is wrong and why.
Predictive: About what will be.
Reflective: About one's own thought and experience.
Strategic: About long-term aims and plans.
Tactical: About the next moves.
Symbolic: About signs and what they stand for.
Functional: About what something is for.
Structural: About parts and how they are joined.
Semantic: About meaning.
Syntactic: About form and grammar.
Pragmatic: About what is meant in use.
Normative: About norms and standards.
Statistical: About data and their distribution.
Probabilistic: About chance and likelihood.
Deterministic: About what follows without chance.
Stochastic: About random processes.
Modular: About parts that stand alone.
Hierarchical: About levels, one above the other.
Distributed: About what is spread over many places.
Localized: About what is confined to one place.
Global: About the whole.
Contextual: About the surroundings that give meaning.
Generalized: About what holds broadly.
Specialized: About one narrow field.
Interdisciplinary: About several fields together.
Multimodal: About text, image and sound together.
Ontological: About what exists and of what kind it is.
Epistemic: About what is known and how surely.
Analog-sensitive: About fine degrees rather than steps.
Schema-bound: About what must fit a fixed schema.
Role-based: About who does what in which role.
Feedback-driven: About results that steer what comes next.
Entailment-aware: About what a statement implies.
Alignment-focused: About keeping to what people intend.
Compression-optimized: About saying the most in the least.
""")
