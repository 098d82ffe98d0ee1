"""SIGHUP: read the configuration again, apply what can change while serving, and name what needs a restart.

A configuration that is wrong changes nothing: the daemon says why and serves on with the one it has.
"""

from collections.abc import Callable, Mapping
from typing import Any

from crishim.config.load import changes, load_file, merged, value
from crishim.config.model import Config
from crishim.errors import CrishimError, InvalidArgumentError
from crishim.log import configure, get_logger

Apply = Callable[[Config], None]

log = get_logger("crishim.daemon")


def reload(config: Config, path: str | None, overrides: Mapping[str, Any], appliers: Mapping[str, Apply]) -> Config:
    """Return the configuration in force afterwards: what needs a restart is as it was.

    Args:
        config: the one in force.
        path: file given at the start, None for the default one.
        overrides: what flags gave; they win still.
        appliers: section (`log`, `images`) → what takes the section's changed settings; `log` is always applied,
            since that opens a rotated file anew.
    """
    try:
        fresh = load_file(path, overrides)
    except InvalidArgumentError as error:
        log.warning("the configuration is wrong, the one in force stays", problems=str(error).split("\n"))
        return config
    live, restart = changes(config, fresh)
    applied: list[str] = []
    for section in sorted({"log", *(option.partition(".")[0] for option in live)}):
        try:
            appliers[section](fresh)
        except (CrishimError, OSError) as error:
            log.warning("changed settings cannot be applied", section=section, error=str(error))
            continue
        applied += [option for option in live if option.startswith(f"{section}.")]
    for option in applied:
        log.info("a setting has changed", option=option, value=value(fresh, option))
    for option in restart:
        log.warning("a changed setting needs a restart", option=option, value=value(fresh, option))
    if not live and not restart:
        log.info("the configuration has not changed")
    return merged(config, fresh, applied)


def apply_log(config: Config) -> None:
    """Apply level and form, and open the log file anew; raises OSError."""
    configure(config.log.level, config.log.format, config.log.file)
