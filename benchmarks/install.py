"""What an installation of nextvec pulls, in MB, and what starting it costs.

Run it with the interpreter of the environment that nextvec is installed in; it needs no other package.
"""

import json
import re
import resource
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

REPEATS = 5
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import nextvec'": ["-c", "import nextvec"],
    "nextvec --help": ["-c", "import sys; from nextvec.cli.main import main; sys.exit(main(['--help']))"],
}


def size(of: Distribution) -> float:
    """Size of the installed files in MB."""
    paths = [of.locate_file(file) for file in of.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6  # type: ignore[attr-defined]


def required(name: str, found: dict[str, Distribution]) -> None:
    """Add a distribution and everything that it requires without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        held = distribution(name)
    except PackageNotFoundError:  # of another platform or Python
        return
    found[key] = held
    for line in held.requires or ():
        if "extra ==" not in line:
            required(re.split(r"[^\w.-]", line, maxsplit=1)[0], found)


def processor_seconds(arguments: list[str]) -> float:
    """The least processor time of several runs."""
    times: list[float] = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    found: dict[str, Distribution] = {}
    required("nextvec", found)
    sizes = {f"{key} {held.version}": size(held) for key, held in found.items()}
    seconds = {name: processor_seconds(arguments) for name, arguments in COMMANDS.items()}
    if "--json" in sys.argv:
        print(json.dumps({"megabytes": sizes, "processor_seconds": seconds}))
        return
    for name, megabytes in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{megabytes:8.1f} MB  {name}")
    print(f"{sum(sizes.values()):8.1f} MB  in all, {len(sizes)} packages")
    for name, value in seconds.items():
        print(f"{value:8.3f} s   {name}")


if __name__ == "__main__":
    main()
