import dataclasses
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import resnetjax as rj
from resnetjax import cli, zoo
from resnetjax.errors import AssumptionWarning
from resnetjax.weights import files
from tests.weights.torch_bytes import integer, mapping, named, sequence, tensor, text, zip_bytes

CONFIG = rj.ResNetConfig(
    block="basic",
    depths=(1, 1, 1),
    widths=(16, 32, 64),
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    stem="conv3",
    stem_width=16,
    stem_pool="none",
    shortcut="pad",
    num_classes=10,
)
LABELS = rj.Labels(names=tuple(f"thing {i}" for i in range(10)))
SMALL = rj.Preprocess(crop_px=(32, 32), resize_mode="squash", resize_px=(32, 32))
# Counted by hand: convolutions, then two numbers a norm channel, then the head.
CONVOLUTIONS = 27 * 16 + 9 * (16 * 16 * 2 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
CHANNELS = 16 + 2 * 16 + 2 * 32 + 2 * 64
PARAMETERS, STATISTICS = CONVOLUTIONS + 2 * CHANNELS + 650, 2 * CHANNELS
MODULE = (sys.executable, "-m", "resnetjax")


class Result(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process, as someone whose stderr is no terminal."""
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)

    def run_main(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["resnetjax", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("default", AssumptionWarning)
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        return Result(stopped.value.code, *capsys.readouterr())

    return run_main


@pytest.fixture(scope="module")
def pre():
    model, variables = rj.create(CONFIG, rng=0)
    return rj.Pretrained(model=model, variables=variables, preprocess=SMALL, labels=LABELS)


@pytest.fixture(scope="module")
def net(pre, tmp_path_factory):
    """A directory that leaves nothing to assume."""
    folder = tmp_path_factory.mktemp("weights") / "net"
    rj.save(pre, folder)
    return folder


@pytest.fixture(scope="module")
def torch_net(pre, tmp_path_factory):
    """The same as a .th of akamaster's names, which leaves things to assume."""
    folder = tmp_path_factory.mktemp("weights")
    rj.save(pre, folder / "net.safetensors", dialect="akamaster")
    arrays = safetensors.numpy.load_file(folder / "net.safetensors")
    arrays = {key: x for key, x in arrays.items() if x.dtype == np.float32}
    described, contents = {}, {}
    for i, (key, x) in enumerate(arrays.items()):
        strides = tuple(step // x.itemsize for step in x.strides)
        described[f"module.{key}"] = tensor(str(i), x.size, x.shape, strides)
        contents[str(i)] = x.tobytes()
    path = folder / "net-0123.th"
    path.write_bytes(zip_bytes(mapping(state_dict=mapping(**described)), contents))
    return path


@pytest.fixture
def photos(tmp_path):
    """Images at three depths, among files and folders that are none."""
    names = ("photos/b.jpg", "photos/a.PNG", "photos/sub/deep/d.jpeg", "photos/sub/c.webp")
    for i, name in enumerate(names):
        picture(tmp_path / name, seed=i)
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/folder.jpg").mkdir()
    return tmp_path / "photos"


def picture(path: Path, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def images_in(out: str) -> list[str]:
    return [line for line in out.splitlines() if not line.startswith("  ")]


def words(message: str) -> str:
    """A message without the box that may be around it, on one line."""
    return " ".join("".join(x if x not in "╭╮╰╯│─" else " " for x in message).split())


def assert_refused(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and one message, in which the parts are."""
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    messages = result.err.count("resnetjax: error:") + result.err.count("For full helptext")
    assert messages == 1, result.err
    for part in parts:
        assert part in words(result.err)


# --- names


def test_names_lists_every_architecture_with_its_size(run):
    code, out, err = run("names")
    head, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split() == ["name", "parameters", "GFLOPs", "top-1", "pixels", "licence"]
    assert [line.split()[0] for line in lines] == list(rj.names())


def test_names_lists_published_weights_after_their_architecture(run):
    code, out, _ = run("names", "resnet34*")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert code == 0
    assert names[:3] == ["resnet34", "resnet34.tv_in1k", "resnet34.a1_in1k"]
    (torchvision,) = (line for line in out.splitlines() if line.startswith("resnet34.tv_in1k"))
    assert torchvision.split() == ["resnet34.tv_in1k", "73.31", "%", "224", "bsd-3-clause"]


def test_names_takes_a_glob_and_prints_exact_counts(run):
    code, out, _ = run("names", "resnet[15]?")
    assert code == 0
    rows = {name: count for name, count, _ in map(str.split, out.splitlines()[1:])}
    assert rows["resnet18"] == "11,689,512"
    assert rows["resnet50"] == "25,557,032"
    names = [name for name in rj.names() if name.startswith("resnet") and len(name) == 8]
    assert list(rows) == [name for name in names if name[6] in "15"]


@pytest.mark.parametrize("glob", ["zzz*", "[", ""])
def test_names_of_nothing_is_an_error(run, glob):
    assert_refused(run("names", glob), repr(glob))


def test_names_into_a_pipe_that_is_closed_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MODULE, "names"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), (">/dev/full", 2)])
def test_a_stdout_that_takes_nothing_is_no_traceback(redirection, code):
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f'"{sys.executable}" -m resnetjax names resnet18 {redirection}'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


def test_a_closed_stderr_sends_no_message_to_stdout():
    command = f'"{sys.executable}" -m resnetjax names zzz 2>&-'
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")


# --- info


def test_info_of_an_architecture_says_how_large_it_is(run):
    code, out, err = run("info", "resnet50")
    assert (code, err) == (0, "")
    assert "25,557,032 and 53,120 running statistics" in out
    assert "224x224x3" in out
    assert out.splitlines()[0] == "resnet50"


def test_info_as_json_has_exact_counts_and_features(run):
    code, out, err = run("info", "resnet50", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["parameters"], facts["statistics"]) == (25_557_032, 53_120)
    assert facts["image"] == [224, 224, 3]
    assert facts["features"][-1] == {"name": "stage4", "channels": 2048, "stride": 32}
    assert facts["config"]["depths"] == [3, 4, 6, 3]
    assert "tree" not in facts
    assert "source" not in facts


def test_info_of_a_file_tells_where_it_is_from_and_what_was_assumed(run, torch_net):
    code, out, err = run("info", torch_net, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["parameters"], facts["statistics"]) == (PARAMETERS, STATISTICS)
    source = facts["source"]
    assert (source["dialect"], source["format"]) == ("akamaster", "torch-zip")
    assert source["path"] == str(torch_net)
    assert source["assumptions"]
    assert all(assumption in err for assumption in source["assumptions"])
    assert facts["labels"] == {"classes": 10, "activation": "softmax"}


def test_info_of_a_directory_has_nothing_to_note(run, net):
    code, out, err = run("info", net)
    assert (code, err) == (0, "")
    assert f"{PARAMETERS:,} and {STATISTICS:,} running statistics" in out
    assert "32x32x3" in out


def test_the_tree_lists_every_array_once_with_its_shape(run, net):
    facts = json.loads(run("info", net, "--tree", "--json").out)
    stored = safetensors.numpy.load_file(net / "model.safetensors")
    assert facts["tree"] == {key: list(x.shape) for key, x in stored.items()}
    elements = sum(int(np.prod(shape)) for shape in facts["tree"].values())
    assert elements == facts["parameters"] + facts["statistics"]
    printed = run("info", net, "--tree").out
    for path, shape in facts["tree"].items():
        assert f"{path} {tuple(shape)}" in " ".join(printed.split())


# --- convert


def test_convert_to_ours_and_back_keeps_every_bit(run, torch_net, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back.safetensors"
    code, out, err = run("convert", torch_net, ours)
    assert code == 0
    assert "akamaster" in out
    assert err.count("note:") == 1
    code, out, err = run("convert", ours, back, "--dialect", "akamaster")
    assert (code, err) == (0, "")  # what was assumed is written down
    assert str(back) in out
    before, after = files.read(torch_net).arrays, safetensors.numpy.load_file(back)
    assert set(before) == {key for key in after if not key.endswith("num_batches_tracked")}
    for key, array in before.items():
        np.testing.assert_array_equal(array, after[key], err_msg=key)


def test_convert_leaves_nothing_behind_where_it_fails(run, net, tmp_path):
    for dialect in ("nope", "timm"):  # timm has no such net
        result = run("convert", net, tmp_path / "out.safetensors", "--dialect", dialect)
        assert_refused(result, dialect)
    assert_refused(run("convert", net, tmp_path / "out.keras"), "out.keras", ".safetensors")
    assert list(tmp_path.iterdir()) == []


def test_convert_does_not_destroy_a_file_in_the_directorys_place(run, net, tmp_path):
    (tmp_path / "out").write_text("precious")
    assert_refused(run("convert", net, tmp_path / "out"), "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_convert_of_a_file_onto_itself_keeps_its_arrays(run, net, tmp_path):
    path = tmp_path / "net.safetensors"
    run("convert", net, path, "--dialect", "akamaster")
    before = safetensors.numpy.load_file(path)
    assert run("convert", path, path, "--dialect", "akamaster").code == 0
    after = safetensors.numpy.load_file(path)
    assert set(before) == set(after)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_convert_says_how_images_are_prepared_where_the_file_cannot(run, net, tmp_path):
    pixels = "crop 32x32, divide by 255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, rgb"
    code, out, _ = run("convert", net, tmp_path / "out.pth", "--dialect", "akamaster")
    assert (code, len(out.splitlines())) == (0, 3)
    said = out.splitlines()[2]
    assert said.startswith("it does not say how images are prepared: resize squash 32x32 bilinear")
    assert said.endswith(pixels)
    for name in ("out", "out.safetensors"):
        assert len(run("convert", net, tmp_path / name).out.splitlines()) == 2


def test_convert_takes_the_architecture_where_the_file_cannot_tell(run, net, tmp_path):
    assert_refused(run("convert", net, tmp_path / "out", "--arch", "resnet5O"), "resnet5O")
    result = run("convert", net, tmp_path / "out", "--arch", "cifar_resnet20")
    assert_refused(result, "does not fit")  # it is smaller


# --- predict


def test_predict_prints_the_likeliest_labels_first(run, net, pre, photos):
    code, out, err = run("predict", net, photos / "b.jpg", "--top", 3)
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == str(photos / "b.jpg")
    (expected,) = rj.predict(pre, photos / "b.jpg", top=3)
    wanted = [f"  {p.probability:8.4f}  {p.label} ({p.index})" for p in expected]
    assert lines == wanted


def test_predict_names_what_a_net_of_imagenet_21k_sees(run, photos, tmp_path):
    config = CONFIG.replace(stem="conv7", stem_pool="max", shortcut="conv", num_classes=21_843)
    model, variables = rj.create(config, rng=0)
    head = variables["params"]["head"]
    head["bias"] = head["bias"].at[9205].set(1000.0)
    net = rj.Pretrained(model=model, variables=variables, preprocess=SMALL)
    rj.save(net, tmp_path / "net.safetensors", dialect="timm")
    code, out, err = run("predict", tmp_path / "net.safetensors", photos / "b.jpg", "--top", 1)
    assert code == 0
    assert "21843 classes are those of imagenet_21k (labels= decides)" in err
    assert out.splitlines()[1] == "    1.0000  picture, image, icon, ikon (9205)"


def test_predict_takes_the_images_of_a_directory_and_below_in_order(run, net, photos):
    code, out, err = run("predict", net, photos, "--top", 1)
    assert (code, err) == (0, "")
    names = ("a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg")
    assert images_in(out) == [str(photos / name) for name in names]


def test_predict_keeps_the_order_in_which_images_are_given(run, net, photos):
    given = [photos / "b.jpg", photos / "sub", photos / "a.PNG", photos / "b.jpg"]
    names = ("b.jpg", "sub/c.webp", "sub/deep/d.jpeg", "a.PNG", "b.jpg")
    for batch_size in (1, 2, 32):
        _, out, _ = run("predict", net, *given, "--batch-size", batch_size, "--top", 1)
        assert images_in(out) == [str(photos / name) for name in names]


def test_predict_as_json_is_a_list_with_one_object_an_image(run, net, pre, photos):
    code, out, err = run("predict", "--json", net, photos, "--top", 2)
    rows = json.loads(out)
    assert (code, err, len(rows)) == (0, "", 4)
    for row in rows:
        assert set(row) == {"image", "predictions"}
        (expected,) = rj.predict(pre, row["image"], top=2)
        assert [set(found) for found in row["predictions"]] == [
            {"label", "index", "probability"}
        ] * 2
        for found, wanted in zip(row["predictions"], expected, strict=True):
            assert (found["label"], found["index"]) == (wanted.label, wanted.index)
            assert found["probability"] == pytest.approx(wanted.probability, rel=1e-4)


def test_one_image_as_json_is_a_list_too(run, net, photos):
    rows = json.loads(run("predict", net, photos / "b.jpg", "--json").out)
    assert [len(row["predictions"]) for row in rows] == [5]


def test_a_corrupt_image_is_named_and_the_others_are_still_printed(run, net, photos):
    content = (photos / "b.jpg").read_bytes()
    (photos / "aa.jpg").write_bytes(content[: len(content) // 2])
    code, out, err = run("predict", net, photos, "--top", 1)
    assert code == 2
    names = ("a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg")
    assert images_in(out) == [str(photos / name) for name in names]
    assert err.count("\n") == 1
    assert str(photos / "aa.jpg") in err
    code, out, again = run("predict", net, photos, "--top", 1, "--json")
    rows = json.loads(out)
    assert (code, again) == (2, err)
    assert [len(row["predictions"]) for row in rows] == [1, 0, 1, 1, 1]
    assert rows[1]["image"] == str(photos / "aa.jpg")
    assert "aa.jpg" in rows[1]["error"]


def test_outputs_that_are_not_finite_are_said_and_no_json(run, pre, photos, tmp_path):
    variables = jax.tree.map(np.array, pre.variables)
    variables["params"]["head"]["bias"] += np.float32(np.nan)
    rj.save(dataclasses.replace(pre, variables=variables), tmp_path / "broken")
    code, out, err = run("predict", tmp_path / "broken", photos / "b.jpg", "--json")
    (row,) = json.loads(out, parse_constant=pytest.fail)
    assert (code, row["predictions"]) == (2, [])
    assert row["error"].startswith(f"{photos / 'b.jpg'}: the net's outputs are not finite")
    assert err == f"resnetjax: error: {row['error']}\n"
    code, out, again = run("predict", tmp_path / "broken", photos / "b.jpg")
    assert (code, out, again) == (2, "", err)


def test_assumptions_are_noted_on_stderr_and_json_stays_json(run, torch_net, photos):
    code, out, err = run("predict", torch_net, photos / "b.jpg", "--json", "--top", 1)
    assert code == 0
    assert json.loads(out)[0]["predictions"][0]["label"] in {
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    }  # fmt: skip
    assert err.startswith("resnetjax: note:")
    assert "cifar10" in err
    assert "Warning" not in err  # no source line, no class name


@pytest.mark.parametrize(
    "name",
    [
        "with space.jpg",
        "ünï¢ödé 猫.jpg",
        "[red]x[/red].jpg",
        "[bold].jpg",
        ":cat:.jpg",
        "%s{0}.jpg",
    ],
)
def test_a_files_name_is_printed_as_it_is(run, net, tmp_path, name):
    path = picture(tmp_path / name)
    bad = tmp_path / f"{name}.png"
    bad.write_bytes(b"no image")
    code, out, err = run("predict", net, path, bad, "--top", 1)
    assert code == 2
    assert images_in(out) == [str(path)]
    assert str(bad) in err
    assert json.loads(run("predict", net, path, "--json").out)[0]["image"] == str(path)
    assert_refused(run("predict", net, tmp_path / "no" / name), str(tmp_path / "no" / name))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_a_name_that_stdout_cannot_encode_is_escaped(net, tmp_path, encoding):
    name = "\udcff é.jpg"  # \udcff: a byte that is no UTF-8
    picture(tmp_path / "x.jpg").rename(tmp_path / name)
    done = subprocess.run(
        [*MODULE, "predict", net, tmp_path, "--top", "1"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\udcff" in done.stdout
    assert done.stdout.count(b"\n") == 2


def test_a_name_that_begins_with_a_dash_follows_two_dashes(run, net, tmp_path, monkeypatch):
    picture(tmp_path / "-x.jpg")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("predict", net, "--top", 1, "--", "-x.jpg")
    assert (code, images_in(out)) == (0, ["-x.jpg"])


def test_the_console_script_is_the_same_command(net, photos):
    script = Path(sys.executable).with_name("resnetjax")
    command = ["predict", net, photos / "b.jpg", "--json"]
    done = [
        subprocess.run([*start, *command], capture_output=True, text=True, check=True)
        for start in (MODULE, (script,))
    ]
    assert json.loads(done[0].stdout) == json.loads(done[1].stdout)
    assert done[0].stderr == done[1].stderr == ""


# --- the progress bar


def test_no_bar_is_drawn_where_stderr_is_no_terminal(run, net, photos):
    assert run("predict", net, photos).err == ""


def test_a_bar_is_drawn_on_a_terminal_and_labels_still_go_to_stdout(net, photos):
    (photos / "aa.jpg").write_bytes(b"no image")
    terminal, its_end = pty.openpty()
    command = [*MODULE, "predict", net, photos, "--top", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end) as process:
        os.close(its_end)
        shown = b""
        while chunk := read_terminal(terminal):
            shown += chunk
        out = process.stdout.read().decode()
    os.close(terminal)
    assert process.returncode == 2
    names = ("a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.jpeg")
    assert images_in(out) == [str(photos / name) for name in names]
    assert b"predicting" in shown
    assert b"100%" in shown
    assert b"aa.jpg" in b"".join(shown.split())  # the error, which rich may have wrapped
    assert b"thing" not in shown


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # as Linux says that the other end is closed
        return b""


def test_with_a_bar_json_stays_json(run, net, photos, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    code, out, err = run("predict", net, photos, "--json", "--top", 1)
    assert code == 0
    assert len(json.loads(out)) == 4
    assert "predicting" in err


def test_one_image_has_no_bar(run, net, photos, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert run("predict", net, photos / "b.jpg").err == ""


# --- what is refused


HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


def test_a_pickle_that_asks_for_os_system_is_refused_and_not_run(run, photos, tmp_path):
    canary = tmp_path / "canary"
    call = named("os", "system") + sequence(text(f"touch {canary}")) + b"R"
    contents = {
        "bare.pth": b"\x80\x02" + call + b".",
        "zip.pth": zip_bytes(call),
        "inner.pth": zip_bytes(mapping(epoch=integer(3), state_dict=call)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for verb in (["info"], ["predict", photos / "b.jpg"], ["convert", tmp_path / "out"]):
            result = run(verb[0], tmp_path / name, *verb[1:])
            assert_refused(result, name)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "part"),
    [(HTML, "it is a web page"), (b"", "empty"), (b"\xff\xd8\xff\xe0 JFIF", "no known weights")],
    ids=["html", "empty", "jpeg"],
)
def test_a_file_that_holds_no_weights_is_refused(run, photos, tmp_path, content, part):
    path = tmp_path / "resnet50.pth"
    path.write_bytes(content)
    assert_refused(run("info", path), str(path), part)
    assert_refused(run("predict", path, photos / "b.jpg"), str(path), part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["info", "absent.pth"], "absent.pth"),
        (["info", "resnet5O"], "did you mean"),
        (["info"], "MODEL"),
        (["convert", "absent.pth", "out"], "absent.pth"),
        (["convert", "absent.pth"], "PATH"),
        (["predict", "absent.pth", "{photos}"], "absent.pth"),
        (["predict", "resnet50", "{photos}"], "resnet50"),
        (["predict", "{empty}", "{photos}"], "no weights found"),
        (["predict", "{net}"], "no images are given"),
        (["predict", "{net}", "absent.jpg"], "absent.jpg"),
        (["predict", "{net}", "{photos}", "absent.jpg"], "absent.jpg"),
        (["predict", "{net}", "{empty}"], "no images in it"),
        (["predict", "{net}", "{photos}", "--top", "abc"], "--top"),
        (["predict", "{net}", "{photos}", "--top", "1.5"], "--top"),
        (["predict", "{net}", "{photos}", "--top", "0"], "top 0 is not allowed: use 1 or more"),
        (["predict", "{net}", "{photos}", "--top", "-3"], "top -3 is not allowed"),
        (["predict", "{net}", "{photos}", "--batch-size", "0"], "use 1 or more"),
        (["predict", "{net}", "{photos}", "--batch-size", "-1"], "use 1 or more"),
        (["predict", "{net}", "{photos}", "--arch", "resnet5O"], "did you mean"),
        (["predict", "{net}", "{photos}", "--frobnicate"], "--frobnicate"),
        (["predict", "absent.onnx", "{photos}"], "absent.onnx"),
        (["predict", "absent.stablehlo", "{photos}"], "absent.stablehlo"),
        (["predict", "a.onnx", "{photos}", "--arch", "resnet50"], "a.onnx is exported, and says"),
        (["export", "{net}", "out.bin"], "end in .stablehlo, .onnx or .savedmodel"),
        (["export", "absent.pth", "out.onnx"], "absent.pth"),
        (["export", "{net}", "out.onnx", "--calibration", "{empty}"], "no images in it"),
        (["names", "resnet18", "resnet34"], "resnet34"),
        (["frobnicate"], "frobnicate"),
        ([], "{names, info, convert, predict"),
    ],
)
def test_a_wrong_call_is_one_message_and_exit_code_2(
    run, net, photos, tmp_path, monkeypatch, arguments, part
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"{net}": net, "{photos}": photos, "{empty}": tmp_path / "empty"}
    assert_refused(run(*(places.get(x, x) for x in arguments)), part)


def test_a_wrong_call_is_one_message_in_its_own_process_too(tmp_path):
    done = subprocess.run(
        [*MODULE, "predict", "absent.pth", tmp_path], capture_output=True, text=True
    )
    assert_refused(Result(done.returncode, done.stdout, done.stderr), "no images in it")


def test_an_interrupt_ends_quietly(run, net, photos, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "load", interrupted)
    assert run("predict", net, photos) == (130, "", "")


@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "{file}"),
        ("convert", "{file}", "out"),
        ("verify", "{file}"),
        ("export", "{file}", "out.onnx"),
        ("features", "{file}", "{photos}", "--out", "out.npz"),
        ("evaluate", "{file}", "digits", "--split", "test"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_exported_is_for_predict_alone(run, photos, tmp_path, monkeypatch, kind, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"m.{kind}").write_bytes(b"\x08\x08")
    places = {"{file}": f"m.{kind}", "{photos}": photos}
    result = run(*(places.get(x, x) for x in arguments))
    assert_refused(result, f"m.{kind} is an exported net, which only `resnetjax predict`")


# --- help


def test_version_is_the_packages_own(run):
    assert run("--version") == (0, f"resnetjax {rj.__version__}\n", "")
    assert "--version" in words(run("--help").out)


@pytest.mark.parametrize(
    ("verb", "named_there"),
    [
        ((), ["names", "info", "convert", "predict"]),
        (("names",), ["Shell pattern"]),
        (("info",), ["MODEL", "--tree", "--json"]),
        (("convert",), ["MODEL", "PATH", "--dialect", "--arch", "torchvision"]),
        (("export",), ["MODEL", "PATH", "--arch", ".stablehlo", ".onnx", ".savedmodel"]),
        (("predict",), ["MODEL", "IMAGE...", "--top", "--json", "--batch-size", "--arch"]),
    ],
)
def test_help_names_every_argument(run, verb, named_there):
    for flag in ("--help", "-h"):
        code, out, err = run(*verb, flag)
        assert (code, err) == (0, "")
        assert out.startswith("usage: resnetjax")
        for name in named_there:
            assert name in out


def test_the_dialects_that_help_names_are_those_there_are(run, net, tmp_path):
    refused = run("convert", net, tmp_path / "out", "--dialect", "nope").err
    listed = refused.partition("there are ")[2].rstrip(")\n").split(", ")
    assert len(listed) > 4
    shown = words(run("convert", "--help").out)
    assert all(f"{name}," in shown or f"{name}." in shown for name in listed)


# --- export


def test_exported_nets_print_what_the_net_prints(run, net, photos, tmp_path):
    pytest.importorskip("onnx", reason="needs onnx")
    flags = ("--top", "2", "--batch-size", "3", "--json")
    expected = json.loads(run("predict", net, photos, *flags).out)
    for name in ("net.stablehlo", "net.onnx"):
        code, out, err = run("export", net, tmp_path / name)
        assert (code, err) == (0, "")
        assert str(tmp_path / name) in out
        code, out, err = run("predict", tmp_path / name, photos, *flags)
        assert (code, err) == (0, "")
        found = json.loads(out)
        for ours, theirs in zip(found, expected, strict=True):
            for mine, other in zip(ours["predictions"], theirs["predictions"], strict=True):
                probability = mine.pop("probability")
                assert probability == pytest.approx(other["probability"], rel=1e-5)
                assert mine == {key: other[key] for key in ("label", "index")}
            assert ours["image"] == theirs["image"]


# --- verify


def test_verify_tells_two_conversions_of_one_net_to_be_alike(run, net, tmp_path):
    assert run("convert", net, tmp_path / "same").code == 0
    first, second = (run("verify", path, "--json") for path in (net, tmp_path / "same"))
    assert (first.code, second.code) == (0, 0)
    assert json.loads(first.out) == json.loads(second.out)
    assert json.loads(first.out)["claims"]["padding"] == "torch"
    shown = run("verify", net).out
    assert json.loads(first.out)["logits_sha256"] in shown
    assert "norm_eps" in shown


CACHED = """
import sys, jax
from resnetjax import cli
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
cli.main(["predict", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_run(net, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    own, named = tmp_path / "home", tmp_path / "named"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}

    def predict(net: Path = net, **settings: str) -> str:
        command = [sys.executable, "-c", CACHED, str(net), str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True,
            env={**environment, "RESNETJAX_HOME": str(own), **settings},
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout

    # JAX's own variable wins.
    assert predict(JAX_COMPILATION_CACHE_DIR=str(named)) == predict()
    programs = {folder: [file.name for file in folder.iterdir()] for folder in
                (named, own / "compiled")}  # fmt: skip
    for names in programs.values():
        assert [name for name in names if name.startswith("jit__scores-")]
    kept = sorted(programs[own / "compiled"])
    predict()
    assert sorted(file.name for file in (own / "compiled").glob("*-cache")) == [
        name for name in kept if name.endswith("-cache")
    ]
    rj.export(rj.load(net), tmp_path / "net.stablehlo")
    before = set((own / "compiled").glob("*-cache"))
    predict(tmp_path / "net.stablehlo")
    assert set((own / "compiled").glob("*-cache")) > before
