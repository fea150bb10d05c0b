"""`onnxdfq images`: what is done to files of images."""

from pathlib import Path

import click

from onnxdfq.cli.options import AS_JSON, FILE, Command
from onnxdfq.cli.printing import echo, echo_json, summary, written_text


@click.group()
def images() -> None:
    """Join files of images that several runs made."""


@images.command(cls=Command, example="onnxdfq images merge shards -o merged.npz")
@click.argument("folder", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The .npz file to write, in another folder.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@AS_JSON
def merge(folder: Path, output: Path, force: bool, as_json: bool) -> None:
    """Put the shards of one synthesis (synthesize --shard K/N), all that lie in FOLDER, into one file."""
    from onnxdfq.api.merging import merge_into

    count = {"images": len(merge_into(folder, output, force=force))}
    if as_json:
        echo_json({"output": str(output), **count})
        return
    echo(summary(count))
    echo(written_text(output))
