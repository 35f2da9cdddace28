"""The `relief` command. Every verb is a module of its own, imported when it is used, so that a device starts small."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tools.parent import end_with_parent

if TYPE_CHECKING:
    import typer

# Vectors here are small: threads of the linear algebra library would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# verb -> (module, attribute, help)
VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("tools.demo.run", "demo", "A fleet on this machine: broker, coordinator, eight devices, a picture."),
    "coordinator": ("tools.coordinator", "app", "Run a fleet's coordinator."),
    "device": ("tools.device", "app", "Run a device, check it."),
    "broker": ("tools.broker", "app", "Certificates, access rules and Mosquitto's configuration."),
    "pretrain": ("tools.pretrain", "pretrain", "Train the base model for mode lora."),
    "fleet": ("tools.fleet", "app", "Look at a running fleet and steer it."),
    "dashboard": ("tools.dashboard.cli", "dashboard", "A live page of a running fleet."),
    "label": ("tools.label", "label", "Tell a device what its wearer is doing."),
    "data": ("tools.data", "app", "Fetch, describe and plot recordings."),
    "replay": ("tools.replay", "replay", "Play recordings as sensor topics."),
    "simulate": ("tools.lab.cli", "simulate", "One simulated run in virtual time."),
    "experiment": ("tools.lab.cli", "experiment", "Grids of methods, fleets, folds and seeds; their reports."),
    "flash": ("tools.flash", "app", "Put the device runtime onto boards."),
    "report": ("tools.report", "report", "One HTML page with the plots of a run or an experiment."),
    "doctor": ("tools.doctor", "doctor", "Versions, configuration and logs in one file."),
    "export": ("tools.export", "export", "Make ONNX files of a checkpoint."),
}


def build(verbs: Iterable[str]) -> typer.Typer:
    """The command with these verbs."""
    import typer  # here, where an interruption is one line already

    app = typer.Typer(no_args_is_help=True, help="Federated learning over MQTT for fleets whose sensors differ.")

    @app.callback()
    def _root() -> None:
        """Federated learning over MQTT for fleets whose sensors differ."""

    for verb in verbs:
        module, attribute, about = VERBS[verb]
        if importlib.util.find_spec(module) is None:
            continue
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb, help=about)
        else:
            app.command(verb, help=None if found.__doc__ else about)(found)
    return app


def main() -> None:
    """Entry point of the command; errors that a user can mend are one line, with the page that says what to do."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    end_with_parent()
    try:
        # click knows terminals, and not this wish; rich knows both.
        build([asked] if asked in VERBS else VERBS)(color=False if os.environ.get("NO_COLOR") else None)
    except KeyboardInterrupt:  # before or after the verb itself, which ends so by itself
        print("relief: interrupted", file=sys.stderr, flush=True)
        # Where it came within exec() of a string, as dataclasses do while they are imported, CPython remembers it as
        # unhandled and would end an ordinary exit by the signal after all.
        os._exit(130)
    except Exception as error:
        from tools.exit_codes import tell

        raise SystemExit(tell(error).number) from None


if __name__ == "__main__":
    main()
