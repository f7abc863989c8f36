"""`llamavid profile` as it is typed, on the embedded model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from llamavid.bundle import MANIFEST
from llamavid.cli import main
from llamavid.commands.profile_table import print_profile
from llamavid.embedded import default_bundle, sample_clip
from tests.clips import write_clip
from tests.runtime.profile.test_comparing import made, steady

QUICK = ("--frames", "4", "--seconds", "0.05", "--new-tokens", "3", "--batch", "1,2", "--threads", "1")


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine copies and multiplies within a test's time."""
    monkeypatch.setattr("llamavid.runtime.profile.measured_ceilings._SIDE", 64)
    monkeypatch.setattr("llamavid.runtime.profile.measured_ceilings._COPIED", 1 << 20)


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["profile", *(str(word) for word in words)])


def test_every_module_of_table_9_is_measured_at_every_batch_and_adds_up() -> None:
    done = typed(*QUICK, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [each["batch"] for each in said["frames"]] == [1, 2]
    for each in said["frames"]:
        median = {name: figure["median"] for name, figure in each["modules"].items()}
        assert all(value > 0 for value in median.values())
        assert median["text-related"] == pytest.approx(median["decoder"] + median["context"], rel=0.01)
        low, high = (
            sum(each["modules"][part][end] for part in ("text-free", "text-related"))
            for end in ("low", "high")
        )
        assert low * 0.9 <= median["total"] <= high * 1.1
    assert said["language"]["new_tokens"] == 3
    assert said["questions"]["stages"]["second"].keys() == {"context", "sequence", "prefill", "decode"}
    assert {"decode_video", "vision"} <= said["questions"]["stages"]["first"].keys()
    assert said["questions"]["second"]["median"] < said["questions"]["first"]["median"]


def test_what_makes_figures_comparable_is_recorded() -> None:
    said = json.loads(typed(*QUICK, "--json").stdout)["conditions"]
    assert {"on", "processor", "cores", "precision", "batch", "bundle", "video"} <= said["alike"].keys()
    assert len(said["alike"]["bundle"]) == 64
    assert {"llamavid", "onnxruntime", "numpy"} <= said["told"].keys()
    assert "allowed" in said["parity"]["vision"]
    assert str(Path.home()) not in json.dumps(said)


def test_the_table_shows_the_paper_s_row_beside_ours_and_the_floor() -> None:
    done = typed(*QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    (total,) = [line for line in lines if line.startswith("total")]
    assert total.endswith("5.98, 5.17")
    (related,) = [line for line in lines if line.startswith("text-related")]
    assert related.endswith("1.10, 0.27")
    assert any("projection, not measured" in line for line in lines)
    assert any(line.startswith("encoder") and "of products" in line for line in lines)
    assert any(line.startswith("AGX Orin") for line in lines)
    assert "No VIDEO: the embedded sample clip" in done.stderr


def test_a_video_of_fewer_frames_than_asked_for_is_told(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "short.mp4", frames=50)  # two seconds
    done = typed(default_bundle(), clip, *QUICK, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["video"]["frames"], said["video"]["asked"]) == (2, 4)
    assert "short.mp4: 2 frames at 1 a second, 4 were asked for" in done.stderr
    assert "No VIDEO" not in done.stderr


def test_several_videos_are_looked_at_until_there_are_enough_frames(tmp_path: Path) -> None:
    clips = [write_clip(tmp_path / f"{name}.mp4", frames=50) for name in "ab"]
    said = json.loads(typed(default_bundle(), *clips, *QUICK, "--json").stdout)
    assert said["video"]["frames"] == 4
    assert said["notes"] == []


def test_a_longer_video_is_looked_at_more_seldom_for_the_two_questions(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.mp4", frames=300)  # twelve seconds
    said = json.loads(typed(default_bundle(), clip, *QUICK, "--json").stdout)
    assert said["video"]["frames"] == 4
    assert 3 <= said["questions"]["frames"] <= 5


def test_a_bundle_that_was_never_compared_gets_no_latency(tmp_path: Path) -> None:
    folder = shutil.copytree(default_bundle(), tmp_path / "bundle")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parity"] = [row for row in manifest["parity"] if row["graph"] != "vision"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    done = typed(folder, *QUICK, "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "'vision' was never compared" in done.stderr


def test_a_machine_under_load_is_told_in_the_table() -> None:
    # In the background of a shell that ends: a process of ours would count as our own work.
    script = f"{shlex.quote(sys.executable)} -c 'while True: pass' >&- & echo $!"
    busy = int(subprocess.check_output(["sh", "-c", script], text=True))
    try:
        done = typed(*QUICK)
    finally:
        os.kill(busy, signal.SIGKILL)
    assert done.exit_code == 0, done.output
    said = [line for line in done.stdout.splitlines() if line.startswith("marked")]
    assert any("other programs used" in line for line in said)


def test_a_gpu_that_throttles_is_marked_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "while :; do echo '1095, 98, 88, 0x0000000000000040'; sleep 0.1; done"
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$*" in *--loop-ms*) {said};; *) echo "Some GPU, 1 MiB";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    done = typed(*QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "marked        the GPU slowed itself down (heat)" in lines
    assert any("GPU clock 1095 MHz" in line for line in lines)


def test_a_figure_of_rounds_that_lie_far_apart_is_marked_where_it_stands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = made()
    (each,) = profile.frames
    loud = replace(each, modules={**each.modules, "encoder": steady(8000.0, spread=0.6)})
    print_profile(replace(profile, frames=(loud,)))
    lines = capsys.readouterr().out.splitlines()
    encoder, decoder = (
        next(line for line in lines if line.startswith(name)) for name in ("encoder", "decoder")
    )
    assert "] !" in encoder
    assert "!" not in decoder


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "profile.png"
    done = typed(*QUICK, "--plot", file)
    assert done.exit_code == 0, done.output
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_a_plot_that_could_not_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "absent" / "profile.png"
    done = typed(*QUICK, "--plot", file)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: --plot {file}: {file.parent} is no folder; expected a file to write.")
    assert done.stdout == ""


def test_a_plot_without_matplotlib_is_one_line_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = typed(*QUICK, "--plot", tmp_path / "profile.png")
    assert done.exit_code == 1
    assert done.stderr.strip().splitlines() == [
        'error: matplotlib not installed. Run: pip install "llamavid[plot]".'
    ]


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_two_profiles_are_compared_by_ratios(tmp_path: Path) -> None:
    first = written(tmp_path, "a.json", made(8000.0).to_json())
    second = written(tmp_path, "b.json", made(4000.0).to_json())
    done = typed("--compare", first, second)
    assert done.exit_code == 0, done.output
    (encoder,) = [line for line in done.stdout.splitlines() if line.startswith("encoder")]
    assert encoder.endswith("2.00")
    (decoder,) = [line for line in done.stdout.splitlines() if line.startswith("decoder")]
    assert decoder.endswith("within the spread")
    document = json.loads(typed("--compare", first, second, "--json").stdout)
    assert {each["what"]: each["times"] for each in document["ratios"]}["encoder, batch 8"] == pytest.approx(
        2
    )


def test_an_unlike_pair_is_refused_in_one_line_unless_it_is_allowed(tmp_path: Path) -> None:
    first = written(tmp_path, "a.json", made().to_json())
    second = written(tmp_path, "b.json", made(processor="another").to_json())
    done = typed("--compare", first, second)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "not made alike: processor A and another" in line
    allowed = typed("--compare", first, second, "--unlike")
    assert allowed.exit_code == 0
    assert "unlike: processor A and another" in allowed.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch", "0"), "'0' is no list like 1,8,32"),
        (("--batch", "1,x"), "'1,x' is no list like 1,8,32"),
        (("--question", "One?"), "1 --question"),
        (("--unlike",), "--unlike without --compare"),
        (("--compare", "a.json", "b.json", "video.mp4"), "--compare with a BUNDLE"),
        (("--compare", "nowhere.json", "b.json"), "nowhere.json cannot be read"),
    ],
)
def test_what_was_typed_wrong_is_told(words: tuple[str, ...], said: str) -> None:
    done = typed(*words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_video_that_is_not_there_or_damaged_is_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(sample_clip().read_bytes()[:3000])
    for video in ("nowhere.mp4", damaged):
        done = typed(default_bundle(), video, *QUICK)
        assert (done.exit_code, done.stdout) == (1, "")
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert Path(video).name in line


def test_a_question_of_one_s_own_is_recorded() -> None:
    done = typed(*QUICK, sample_clip(), "--question", "What?", "--question", "And then?", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["conditions"]["alike"]["questions"] == "What? | And then?"
