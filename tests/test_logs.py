import json
import subprocess
import sys


def said_by(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_at_debug_libraries_are_not_heard() -> None:
    """Some log requests there, with passwords and tokens."""
    code = (
        "import logging\n"
        "from service.logs import set_up\n"
        "from service.settings import LogLevel, LogSettings\n"
        "for level in LogLevel:\n"
        "    set_up(LogSettings(level=level), 'main')\n"
        "    names = ('service.app.server', 'aiokafka.conn', 'botocore.auth', 'root')\n"
        "    print(level.value, *(logging.getLogger(one).getEffectiveLevel() for one in names))\n"
    )
    assert said_by(code).stdout.split("\n") == [
        "DEBUG 10 20 20 20",
        "INFO 20 20 20 20",
        "WARNING 30 30 30 30",
        "ERROR 40 40 40 40",
        "",
    ]


def test_for_collectors_each_line_is_an_object_that_names_the_process() -> None:
    code = (
        "import logging\n"
        "from service.logs import set_up\n"
        "from service.settings import LogSettings\n"
        "set_up(LogSettings(format='json'), 'worker')\n"
        "log = logging.getLogger('service.trainer.worker')\n"
        "log.warning('two\\nlines of %s', 3)\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    log.exception('no')\n"
    )
    first, second = map(json.loads, said_by(code).stderr.splitlines())
    assert (first["process"], first["level"]) == ("worker", "WARNING")
    assert first["message"] == "two\nlines of 3"
    assert "ZeroDivisionError" in second["exception"]
