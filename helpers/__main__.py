"""The command line: ``python -m helpers run | sweep | audit | report | tutorial | stamp``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import __version__, bars
from helpers.config import (
    ADAPTERS,
    CRITERIA,
    DEVICES,
    KINDS,
    MODES,
    PRECISIONS,
    PRESETS,
    SCOPES,
    InputError,
    RunConfig,
    anchor,
    check,
    choose,
    get_config,
    launched,
    one_line,
    whole_reason,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from helpers import runs
    from helpers.data import Dataset

log = logging.getLogger("helpers")
LONGEST = 40  # rows of a printed summary
INTERRUPTED = 130  # what a shell returns for a command stopped by Ctrl-C
CLOSED = 141  # and for one whose output nobody reads any more


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words after the program's name; None takes them from the shell.

    Returns:
        The exit status: 0; 2 for input that cannot be used and files that cannot be read or
        written, or if a notebook of the tutorial fails; 130 after Ctrl-C; 141 if whoever reads the
        output, such as ``head``, has enough of it.

    Source: this project.
    Lesson: 00_start_here, "The same from a shell".
    """
    _open_closed()
    told = sys.stderr
    for stream in (sys.stdout, told):
        if isinstance(stream, io.TextIOWrapper):  # a file of Windows, say, that holds no Greek
            with contextlib.suppress(OSError):  # of what it could not write before
                stream.reconfigure(errors="replace")
    try:
        with contextlib.redirect_stderr(bars.Heedless(told)):  # no result is worth less than a word
            return _main(arguments)
    finally:
        _hush(told)


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("helpers").setLevel(logging.INFO)
    try:
        _standing()
        if options.home is not None:
            _folder("home", options.home)
            os.environ["HELPERS_HOME"] = options.home
        anchor()
        return _command(options)
    except BrokenPipeError:  # no fault: head, say, closes a pipe once it has its lines
        _hush(sys.stdout)
        return CLOSED
    except (InputError, OSError) as error:  # FileProblem is an OSError
        print(one_line(f"error: {_worded(error)}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(one_line(str(stopped) or "stopped; finished runs are kept"), file=sys.stderr)
        return INTERRUPTED


class _OneLine(logging.Formatter):
    """Keeps what the name of a file or class holds from moving the cursor of a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def _say(text: str) -> None:
    """Print at once, where it can be told that it was the output that failed."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        from helpers import files

        _hush(sys.stdout)
        raise files.FileProblem(
            f"the output cannot be printed: {error.strerror}; finished runs are kept, and the same "
            "command prints them where there is room"
        ) from error


def _open_closed() -> None:
    """Open what the shell closed, or the next file has its number, and whatever is printed to it.

    Workers inherit it, as they would what the shell left open.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def _hush(stream: Any) -> None:
    """Send what is left of a failed output nowhere: Python would fail at it again at its end."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _worded(error: Exception) -> str:
    """Add what to do where the operating system says no more than that it is not permitted."""
    from helpers import files

    plain = isinstance(error, PermissionError) and error.filename is not None
    return files.forbidden(error.filename) if plain else str(error)


def _standing() -> None:
    """Refuse a working folder that was deleted: the error of the system names nothing."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError(
            "the working folder does not exist any more; change to one that does, as with cd ~"
        ) from error


def _folder(field: str, text: str) -> Path:
    """Refuse an empty name of a folder, for which a path takes the working folder."""
    check(field, text, bool(text.strip()), "the name of a folder; . is the working folder")
    return Path(text)


def _command(options: argparse.Namespace) -> int:
    """Run a command, in one process or as one of several."""
    if not launched():
        return options.command(options)
    from helpers import parallel

    try:
        with parallel.joined(getattr(options, "device", None)):
            allowed = "one, for this command: let several do run, and this one reads what they kept"
            check("processes", parallel.processes(), options.command is _run, allowed)
            if parallel.rank() > 0:
                logging.getLogger("helpers").setLevel(logging.ERROR)
            return options.command(options)
    except parallel.Ended:
        return 2


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and names those that its command does not have."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)  # --mode is no short form of --model

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Show the usage of the command itself: argparse leaves the rest to its parser's parser."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m helpers", description="Prune first, then adapt, then unlearn.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser(
        "run", help="do one run, print its row beside retrain, keep its record",
        description="Do one run, or read it back if it was done before. Prints its row beside the "
        "original and the retrained network and keeps model.safetensors and run.json.",
    ))  # fmt: skip
    _add_sweep(commands.add_parser(
        "sweep", help="do a grid of runs, on one machine or many; goes on where it was stopped",
        description="Do a run for every combination of the values given. Any option of a run but "
        "--preset, --home and --train-epochs may be a list (1,2,4) or, for whole numbers, a range "
        "(0..4, both ends included). Every finished point is kept; the same command goes on from "
        "there, and may run several times at once on one folder. Writes a table of all points as "
        "CSV and JSON.",
    ))  # fmt: skip
    _add_report(commands.add_parser(
        "report", help="do one run, audit it against retrained networks, write the report card",
        description="Do one run, or read it back, audit it against networks retrained without the "
        "class, and write report.html (one file, nothing is loaded), report.json and report.md.",
    ))  # fmt: skip
    _add_audit(commands.add_parser(
        "audit", help="audit a network of your own from its safetensors file",
        description="Audit a network that was unlearned elsewhere: by its answers, its features, "
        "how fast the class comes back and what attacks tell, beside the original and networks "
        "retrained without the class.",
    ))  # fmt: skip
    _add_tutorial(commands.add_parser(
        "tutorial", help="execute notebooks 00 to 06 and write them as HTML",
        description="Execute the notebooks in order, write each as HTML, print the comparison.",
    ))  # fmt: skip
    _add_stamp(commands.add_parser(
        "stamp", help="write the repository's address and tag into the notebooks",
        description="Write the badges and the bootstrap cell of every notebook from the address "
        "and the tag in pyproject.toml.",
    ))  # fmt: skip
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    presets = ", ".join(PRESETS)
    default = "$HELPERS_PRESET, else gpu in Colab with a GPU, else cpu"
    parser.add_argument("--preset", help=f"{presets}; default: {default}")
    parser.add_argument(
        "--home", metavar="DIR", help="folder for artifacts/ and data/; default: $HELPERS_HOME, "
        "else the nearest folder, from the working one upwards, with a pyproject.toml, else the "
        "working one",
    )  # fmt: skip


def _add_images(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add what tells the images and the class to forget; as text where there may be several."""
    _shared(parser)
    add, whole = parser.add_argument, str if several else int
    add("--data", help="digits, cifar10, or folder:PATH of a folder, or a tar archive of one, with "
        "one subfolder of images per class")  # fmt: skip
    at_once = "one point each for 3,5; 3+5 is one request for both; all for each class alone"
    add("--forget", metavar="CLASS", help="class to forget: 0 to number of classes - 1; "
        + (at_once if several else "or several, as in 3,5"))  # fmt: skip
    add("--seed", type=whole, metavar="N", help="0 to 2147483647")
    add("--device", help=f"{', '.join(DEVICES)}; auto takes CUDA where there is one, else the CPU")
    add("--threads", type=whole, metavar="N", help="CPU threads: 1 and up; 0 leaves torch's choice")
    add("--image-size", type=whole, metavar="PX", help="side of a folder's images: 8 to 512 pixels")
    add("--on-corrupt", help="images of a folder that cannot be read: stop (default) or skip")
    add("--memory-mb", type=whole, metavar="MB", help="memory for the images; more of them are "
        "read from a file batch by batch: 0 and up; default 4096")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bars")


def _add_run(parser: argparse.ArgumentParser, several: bool = False) -> None:
    _add_images(parser, several)
    add = parser.add_argument
    whole, number = (str, str) if several else (int, float)
    add("--method", help="original, retrain, finetune, prune_finetune, lora, prunelora (default), "
        "prunelora_channels; the baselines finetune_sgd, gradient_ascent, neggrad_plus, "
        "random_labels, salun, l1_sparse, scrub, bad_teacher, ssd, boundary_shrink, "
        "weight_negation; the cheats logit_mask, head_only, prototype; or two, as in "
        "prunelora+scrub: pruning and adapters of the first, the rest of the second")  # fmt: skip
    add("--original-seed", type=whole, metavar="N",
        help="seed of the network to start from; default: that of --seed")  # fmt: skip
    add("--mode", help=f"{' or '.join(MODES)}: corrected method, or published settings and code")
    add("--model", help="digits_resnet, resnet20, resnet18, resnet50, vit, vit_tiny, resnet_tiny")
    add("--earlier", metavar="CLASSES",
        help="classes forgotten before, one request after another, as in "
        + ("8+1" if several else "8,1"))  # fmt: skip
    add("--sparsity", type=number, metavar="S", help="share to prune: 0 <= S < 1")
    add("--pruning", help=f"{', '.join(KINDS)}; default: the method's own")
    add("--criterion", help=f"what goes first, the least by {', '.join(CRITERIA)}; default l2")
    add("--scope", help=f"where single weights compete: {' or '.join(SCOPES)}; default global")
    add("--mask-data", help="images that may choose the mask: retain (default) or all, a leak")
    add("--rank", type=whole, metavar="R", help="rank of the adapters: 1 to what the layers admit")
    add("--adapter", help=f"{', '.join(ADAPTERS)}; default lora")
    add("--targets", help="layers with adapters: last_block, last_stage (default), blocks, all "
        "(stem and shortcuts too)")  # fmt: skip
    add(
        "--norms",
        help="BatchNorm from the first adapter on: part of the patch (default), or frozen",
    )
    add("--alpha", type=number, metavar="A", help="LoRA scale is A / R: above 0; default 2 R")
    add("--dropout", type=number, metavar="P", help="dropout of the adapters: 0 <= P < 1")
    add("--epochs", type=whole, metavar="N", help="epochs of the unlearning stage: 1 and up")
    add("--lr", type=number, metavar="LR", help="learning rate of the unlearning stage: above 0")
    add("--train-epochs", dest="train", type=_epochs, metavar="N", help="epochs of the training of "
        "the original and retrained networks: 1 and up; default: the preset's"
        + (", one number for all points" if several else ""))  # fmt: skip
    add("--precision", help=f"{', '.join(PRECISIONS)}; auto is mixed precision on CUDA")
    add("--compile", action="store_true", default=None,
        help="torch.compile the training steps: for long runs of small networks")  # fmt: skip
    add("--graphs", action="store_true", default=None,
        help="on a GPU, repeat training steps from a recording: for small networks")  # fmt: skip
    add("--cache-mb", type=whole, metavar="MB", help="for the outputs of the frozen part, in "
        "memory or a file: 0 (computed anew at every step) and up; default 1024")  # fmt: skip
    text = "at most N training images a class: 2 and up"
    add("--train-limit", type=whole, metavar="N", help=text)
    parser.set_defaults(command=_run)


def _epochs(text: str) -> dict[str, int]:
    """Read what is different in the preset's recipe of training."""
    try:
        return {"epochs": int(text)}
    except ValueError:
        why = f"{text!r} is not allowed: one whole number"
        raise argparse.ArgumentTypeError(why) from None


def _config(options: argparse.Namespace) -> RunConfig:
    """Build the configuration from those options that are its fields."""
    fields = {f.name for f in dataclasses.fields(RunConfig)} - {"preset"}
    changes: dict[str, Any] = {
        k: v for k, v in vars(options).items() if k in fields and v is not None
    }
    if trained := changes.get("train"):
        check("train_epochs", trained["epochs"], trained["epochs"] >= 1, "at least 1")
    for field in {"forget", "earlier"} & changes.keys():
        changes[field] = _classes(field, changes[field])
    return get_config(options.preset, **changes)


def _run(options: argparse.Namespace) -> int:
    cfg = _config(options)
    from helpers import audit, data, models, parallel, report, runs, statistics, unlearning

    unlearning.method(cfg.method)
    choose("model", cfg.model, models.MODELS)
    _remark([cfg], options)
    dataset = data.load_dataset(cfg, progress=not options.quiet)
    start = cfg.seed if cfg.method == "original" else cfg.start_seed
    first = cfg.but(seed=start, original_seed=None)  # what the method starts from
    others = dict.fromkeys(m for m in ("retrain", cfg.method) if m != "original")
    for method in others:  # before the original is trained
        unlearning.validate(cfg.but(method=method), dataset)
    how = {"dataset": dataset, "progress": not options.quiet, "measured": None}
    done = [run for one, methods in ((first, ["original"]), (cfg, others))
            for run in runs.run_all(one, methods, [one.seed], **how)]  # fmt: skip
    if parallel.rank() > 0:
        return 0
    table = audit.compare(run.row for run in done)
    _say(report.text_table(report.cells(statistics.summary(table))))
    names = ", ".join(f"{c} {dataset.classes[c]!r}" for c in cfg.forgotten)
    _say(f"class {names} of {len(dataset.classes)}")
    if cfg.earlier:
        _say(f"seconds, memory and GMACs of {cfg.method} are those of the last request alone")
    if lines := [_validated(run) for run in done if run.history]:
        _say(f"validation accuracy, of the class and of the others: {'; '.join(lines)}")
    asked = next(run for run in done if run.config.method == cfg.method)
    _say(f"{'read back from' if asked.from_disk else 'kept in'} {asked.folder}")
    return 0


def _validated(run: runs.Run) -> str:
    from helpers import audit

    of = {name: run.history[-1][name] for name in ("forget", "retain")}
    text = {n: audit.shown("TA", None if math.isnan(v) else v) for n, v in of.items()}
    return f"{run.config.method} {text['forget']} and {text['retain']}"


def _remark(points: Sequence[RunConfig], options: argparse.Namespace) -> None:
    """Say which of the given options no method uses, and which methods were not tuned."""
    from helpers import runs

    given = [name for name, value in vars(options).items() if value is not None]
    unused = set.intersection(*({*runs.unused(point, given)} for point in points))
    if words := [f"--{name.replace('_', '-')}" for name in given if name in unused]:
        methods = ", ".join(dict.fromkeys(point.method for point in points))
        log.warning("%s on %s: not used: %s", methods, points[0].data, ", ".join(words))
    untuned = [p.method for p in points if p.mode == "default" and p.tuned and not p.tuned_recipe
               and {"lr", "epochs"} - {*runs.unused(p, ("lr", "epochs"))}]  # fmt: skip
    if names := ", ".join(dict.fromkeys(untuned)):
        log.warning("%s: not tuned for %s, has the paper's recipe", names, points[0].tuned)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_run(parser, several=True)
    add = parser.add_argument
    add("--workers", type=int, metavar="N", default=1,
        help="processes on this machine, each with its own --threads; default 1")  # fmt: skip
    add("--ray", metavar="ADDRESS", help="do the points on Ray: local, or a cluster that runs, "
        "auto or HOST:PORT; its machines must see one folder --home")  # fmt: skip
    add("--skip-impossible", action="store_true", help="leave out, and list, points that cannot "
        "be run, such as a rank that a layer cannot have; default: refuse all")  # fmt: skip
    add("--out", default="sweep", metavar="PATH",
        help="writes the table to PATH.csv and PATH.json; default: sweep")  # fmt: skip
    parser.set_defaults(command=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from helpers import files, report, statistics, sweep

    ok = os.path.basename(options.out).strip() not in ("", ".", "..")
    check("out", options.out, ok, "the path of a file, without its ending")
    out = Path(options.out)
    files.try_folder(out.parent, *(path.name for path in sweep.paths(out)))
    fields = [f.name for f in dataclasses.fields(RunConfig) if f.name != "preset"]
    given = {name: getattr(options, name, None) for name in fields}
    grid = {
        name: sweep.values(name, value) if isinstance(value, str) else [value]
        for name, value in given.items() if value is not None
    }  # fmt: skip
    kinds = {name: grid[name] for name in ("method", "mode", "data") if name in grid}
    _remark([get_config(options.preset, **dict(zip(kinds, values, strict=True)))
                 for values in itertools.product(*kinds.values())], options)  # fmt: skip
    done = sweep.run(grid, options.preset, options.workers, options.ray,
                     options.skip_impossible, not options.quiet)  # fmt: skip
    paths = sweep.save(done, out)  # first: what is printed may not arrive
    cells = report.cells(statistics.summary(sweep.table(done)))
    cells[0][-1] = "points"
    _say(report.text_table(cells[: LONGEST + 1]))
    if len(cells) > LONGEST + 1:
        _say(f"... and {len(cells) - 1 - LONGEST} more rows in the table")
    for name, reason in done.impossible:
        _say(one_line(f"left out: {name}: {reason}"))
    if done.same:
        _say(f"combinations of settings that come to the same as another: {done.same}")
    failed = [row for row in done.rows if row["problem"]]
    for row in failed:
        names = [name for name in dict.fromkeys(("forget", "seed", *done.varied))
                 if name != "method" and row[name] is not None]  # fmt: skip
        where = ", ".join([row["method"], *(f"{name} {row[name]}" for name in names)])
        _say(one_line(f"failed: {where}: {row['problem']}"))
    _say(f"{len(done.rows)} points in {done.seconds:.1f} s: {done.done} done now, "
         f"{len(done.rows) - done.done - len(failed)} kept, {len(failed)} failed")  # fmt: skip
    for path in paths:
        _say(str(path))
    return 2 if failed else 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--oracles", type=int, metavar="N", default=5,
        help="networks retrained without the class, each with a seed of its own: 3 and up; "
        "default 5")  # fmt: skip
    parser.add_argument("--out", default="report", metavar="DIR",
        help="folder for report.html, report.json and report.md; default: report")  # fmt: skip
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    cfg = _config(options)
    from helpers import card, files, models, study

    out = _folder("out", options.out)
    files.try_folder(out, *card.NAMES)
    choose("model", cfg.model, models.MODELS)
    _remark([cfg], options)
    record = study.audit_run(cfg, options.oracles, progress=not options.quiet)
    _write_card(record, out)
    return 0


def _write_card(record: dict[str, Any], out: Path | None) -> None:
    """Write the card and print the table, each of which may fail without the other."""
    from helpers import card, report

    paths = {}
    try:
        paths = {} if out is None else card.write(record, out)
    finally:
        _say(report.text_table(report.audit_cells(record)))
    for path in paths.values():
        _say(str(path))


def _add_audit(parser: argparse.ArgumentParser) -> None:
    _add_images(parser)
    add = parser.add_argument
    add("--model", required=True, dest="judged", metavar="PATH",
        help="the network to judge: a safetensors file, or a folder of this package")  # fmt: skip
    add("--original", required=True, metavar="PATH", help="the network before unlearning")
    add("--oracle", required=True, action="append", dest="oracles", metavar="PATH",
        help="a network trained without the class; give three or more")  # fmt: skip
    add("--architecture", dest="built", metavar="NAME",
        help="one of this package's architectures, or MODULE:FUNCTION of your own code, which "
        "returns an untrained network; not needed for folders that this package wrote")  # fmt: skip
    for name in ("mean", "std"):
        add(f"--{name}", metavar="C,C,C", help=f"{name} of each channel, of pixels from 0 to 1, as "
            "in training; default: measured on the training images")  # fmt: skip
    add("--out", metavar="DIR", help="also write report.html, report.json and report.md there")
    parser.set_defaults(command=_audit)


def _audit(options: argparse.Namespace) -> int:
    cfg = _config(options)
    from helpers import audit, card, data, files, models, runs, unlearning

    unlearning.set_threads(cfg)
    out = None if options.out is None else _folder("out", options.out)
    if out is not None:
        files.try_folder(out, *card.NAMES)
    check("oracles", len(options.oracles), len(options.oracles) >= audit.LEAST_ORACLES,
          audit.ENOUGH)  # fmt: skip
    paths = [Path(path) for path in (options.judged, options.original, *options.oracles)]
    base = _architecture(options.built, paths)
    dataset = data.load_dataset(cfg, progress=not options.quiet)
    dataset = _normalised(dataset, options.mean, options.std)
    if "test" in dataset.taken:
        log.warning("%s has no test images of its own: some were taken from the training images, "
                    "which the networks may have been trained on", dataset.name)  # fmt: skip
    _, channels, _, side = dataset.train.images.shape
    if isinstance(base, str):
        base = models.build_model(base, len(dataset.classes), channels, side, cfg.seed)
    elif base is not None and getattr(base, "input_shape", None) is None:
        base.input_shape = (channels, side, side)
    networks = [models.load(path, base).to(cfg.device) for path in paths]
    split = dataset.split(cfg.forgotten)
    record = audit.audit(networks[0], networks[1], networks[2:], split, seed=cfg.seed)
    record |= {"how": None, "costs": None, **runs.environment(cfg.device)}
    _write_card(record, out)
    return 0


def _architecture(built: str | None, paths: Sequence[Path]) -> nn.Module | str | None:
    """Refuse what cannot be audited before images are downloaded or decoded.

    Returns the user's own network; the name of one of ours, which the images are needed to build;
    or None where the folders say what they hold.
    """
    from helpers import files, models

    for path in paths:
        ok = built is not None or not path.is_file()
        check("architecture", built, ok, "a name, or MODULE:FUNCTION, for a plain file")
        if not path.is_dir():
            files.tensor_shapes(path)  # is there, and is no pickle
    if built is None:
        return None
    if ":" in built:
        return _own_network(built)
    known = ", ".join(models.MODELS)
    check("architecture", built, built in models.MODELS,
          f"known are {known}, or MODULE:FUNCTION of your own")  # fmt: skip
    return built


def _own_network(built: str) -> nn.Module:
    """Call the user's own function, from the working folder or an installed module.

    What it does to the working folder is undone, since paths are relative to it, and it does not
    see our options, which a script would take for its own.
    """
    import importlib

    from torch import nn

    module, _, function = built.partition(":")
    here, words = os.getcwd(), sys.argv
    sys.path.insert(0, here)
    sys.argv = words[:1]
    try:
        with contextlib.chdir(here):
            network = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything; it is quoted
        raise InputError(
            f"architecture = {built!r} cannot be had: {whole_reason(error)}; use "
            "MODULE:FUNCTION of a function without arguments in the working folder or an installed "
            "module"
        ) from error
    finally:
        sys.argv = words
        with contextlib.suppress(ValueError):  # the user's code may have taken it out
            sys.path.remove(here)
    ok = isinstance(network, nn.Module)
    check("architecture", type(network).__name__, ok, "a function that returns an nn.Module")
    return network


def _normalised(dataset: Dataset, mean: str | None, std: str | None) -> Dataset:
    """Take the user's normalisation in place of the measured one."""
    import torch

    for name, text in (("mean", mean), ("std", std)):
        if text is None:
            continue
        own = getattr(dataset, name)
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError:
            values = []
        ok = len(values) == len(own) and all(math.isfinite(v) for v in values)
        ok = ok and (name == "mean" or min(values) > 0)
        above = ", each above 0" if name == "std" else ""
        check(name, text, ok, f"{len(own)} number(s){above}, one a channel, separated by commas")
        dataset = dataclasses.replace(dataset, **{name: torch.tensor(values).to(own)})
    return dataset


def _classes(field: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    ok = all(part.strip().isdecimal() and len(part) < 20 for part in parts)
    check(field, text, ok, "class numbers, separated by commas: 3, or 3,5; they count from 0, in "
          "the order of the classes' names")  # fmt: skip
    return tuple(int(part) for part in parts)


def _add_tutorial(parser: argparse.ArgumentParser) -> None:
    _shared(parser)
    add = parser.add_argument
    add("--notebooks", default="notebooks", metavar="DIR", help="folder of the notebooks")
    add("--html", default="html", metavar="DIR", help="where the HTML pages go")
    add("--write", action="store_true",
        help="also write the outputs into the notebooks, and the measured costs and the comparison "
        "into results/ and the Markdown pages: how the committed ones are made")  # fmt: skip
    parser.set_defaults(command=_tutorial)


def _tutorial(options: argparse.Namespace) -> int:
    cfg = get_config(options.preset)
    from helpers import tutorial

    notebooks, pages = (_folder(name, getattr(options, name)) for name in ("notebooks", "html"))
    tutorial.play(cfg, notebooks, pages, options.write, say=_say)
    return 0


def _add_stamp(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--notebooks", default="notebooks", metavar="DIR",
        help="folder of the notebooks, beside pyproject.toml")  # fmt: skip
    add("--check", action="store_true", help="write nothing; fail if a notebook is not up to date")
    parser.set_defaults(command=_stamp, home=None)


def _stamp(options: argparse.Namespace) -> int:
    from helpers import stamp

    notebooks = _folder("notebooks", options.notebooks)
    where = stamp.origin(notebooks.resolve().parent / "pyproject.toml")
    differed = stamp.stamp_all(notebooks, where, write=not options.check)
    names = ", ".join(str(path) for path in differed)
    if options.check and differed:
        raise InputError(f"{names}: not up to date; run python -m helpers stamp")
    _say(f"stamped {names}" if differed else "all notebooks are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
