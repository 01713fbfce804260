"""A net goes to a hub, as huggingface_hub sends it there, and comes back from it."""

import base64
import builtins
import hashlib
import json
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import resnetjax as rj
from resnetjax import cli
from resnetjax.errors import ConfigError, MissingExtra, UploadFailed
from resnetjax.infer.model_card import card, known_metrics
from resnetjax.infer.push import push
from tests.weights.local_server import Page, running, serve_repository

# huggingface_hub 2.4 uploads large files in a way that its own httpx2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = rj.ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), stem="conv3",
    stem_width=8, stem_pool="none", num_classes=3,
)  # fmt: skip
SMALL = rj.Preprocess(crop_px=(16, 20), resize_mode="squash", resize_px=(16, 20))
LABELS = rj.Labels(names=("cat", "dog", "bird"))
COMMIT, NAME = "e" * 40, "me/my-net"


def pretrained(**changes) -> rj.Pretrained:
    model, variables = rj.create(CONFIG, rng=0)
    known = {"preprocess": SMALL, "labels": LABELS}
    return rj.Pretrained(model=model, variables=variables, **{**known, **changes})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that takes one repository, and then serves it."""
    import huggingface_hub
    from huggingface_hub import constants

    # A process that has been here before would have read $HF_ENDPOINT and its kind at the import.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("RESNETJAX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with running() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        _take(server)
        yield server
    huggingface_hub.utils.close_session()


def _json(value: object) -> Page:
    return Page(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _take(server) -> None:
    """What huggingface_hub asks of a hub for `create_repo` and `upload_folder`."""
    large: dict[str, bytes] = {}

    def preupload(body: bytes) -> Page:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return _json({"files": files})

    def batch(body: bytes) -> Page:
        objects = []
        for asked in json.loads(body)["objects"]:
            path = f"/upload/{asked['oid']}"
            server.actions[path] = lambda content: (
                large.update({hashlib.sha256(content).hexdigest(): content}) or Page()
            )
            objects.append({**asked, "actions": {"upload": {"href": server.url(path)}}})
        return _json({"transfer": "basic", "objects": objects})

    def commit(body: bytes) -> Page:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = large[value["oid"]]
        serve_repository(server, NAME, files, commit=COMMIT)
        url = server.url(f"/{NAME}/commit/{COMMIT}")
        return _json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    server.actions |= {
        "/api/repos/create": lambda body: _json({"url": server.url(f"/{NAME}"), "id": NAME}),
        "/api/validate-yaml": lambda body: _json({"errors": [], "warnings": []}),
        f"/api/models/{NAME}/preupload/main": preupload,
        f"/{NAME}.git/info/lfs/objects/batch": batch,
        f"/api/models/{NAME}/commit/main": commit,
    }


def sent(server, path: str) -> dict:
    """The last body that was posted there."""
    return json.loads([seen.body for seen in server.seen if seen.path == path][-1])


def test_what_was_pushed_is_what_load_reads_back(hub):
    pre = pretrained()
    address = push(pre, NAME)
    assert address == f"{hub.address}/{NAME}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left open
        back = rj.load(f"hf://{NAME}")
    assert (back.config, back.preprocess, back.labels) == (CONFIG, SMALL, LABELS)
    jax.tree.map(np.testing.assert_array_equal, back.variables, pre.variables)
    asked = sent(hub, "/api/repos/create")
    assert (asked["name"], asked["organization"]) == ("my-net", "me")
    assert not asked.keys() & {"private", "visibility"}  # an organisation's own default holds
    writes = [seen for seen in hub.seen if seen.path.startswith("/api/models") and seen.body]
    assert {seen.headers["authorization"] for seen in writes} == {"Bearer hf_secret"}


def test_the_repository_holds_config_weights_and_card(hub):
    push(pretrained(), NAME, private=True, metrics={"top-1": "91.2 %"}, message="First try")
    assert sent(hub, "/api/repos/create")["visibility"] == "private"
    files = {
        path.rpartition("/")[2]: page.body
        for path, page in hub.pages.items()
        if "/resolve/" in path
    }
    assert set(files) - {".gitattributes"} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads(files["config.json"])["format"] == "resnetjax"
    assert "head/bias" in safetensors.numpy.load(files["model.safetensors"])
    assert "- top-1: 91.2 %\n" in files["README.md"].decode()
    commits = [seen.body for seen in hub.seen if "/commit/" in seen.path and seen.body]
    assert json.loads(commits[0].splitlines()[0])["value"]["summary"] == "First try"


def test_the_verb_pushes_and_says_how_to_read_it(hub, tmp_path, capsys):
    rj.save(pretrained(), tmp_path / "net")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["push", str(tmp_path / "net"), NAME, "--private"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    assert f"resnetjax.load('hf://{NAME}')" in out
    assert sent(hub, "/api/repos/create")["visibility"] == "private"


def test_a_dry_run_prints_the_card_and_asks_nothing_of_anybody(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    rj.save(pretrained(), tmp_path / "net")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["push", str(tmp_path / "net"), NAME, "--dry-run"])
    assert stopped.value.code == 0
    assert hub.seen == []
    assert capsys.readouterr().out == card(rj.load(tmp_path / "net"), NAME)


def test_without_a_token_it_says_so_before_anything_is_read(hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"no token .* HF_TOKEN .*hf auth login"):
        push(pretrained(), NAME)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["push", "no/such/net", NAME])
    assert stopped.value.code == 2
    assert "no token" in capsys.readouterr().err
    assert hub.seen == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_place_the_reason_and_the_token(hub, status):
    hub.actions["/api/repos/create"] = lambda body: Page(status=status)
    with pytest.raises(
        UploadFailed, match=rf"(?s){NAME} cannot be .*{hub.address}.*{status}.*HF_TOK"
    ):
        push(pretrained(), NAME)


def test_without_a_network_it_says_so(hub):
    hub.stop()
    with pytest.raises(UploadFailed, match="cannot be pushed"):
        push(pretrained(), NAME)


@pytest.mark.parametrize("name", ["net", "me/", "me/a/b", "../x", "hf://me/net", "me/né"])
def test_what_is_no_name_of_a_repository_is_refused(name):
    with pytest.raises(ConfigError, match="use owner/name"):
        push(pretrained(), name)


def test_without_the_extra_it_says_which(monkeypatch):
    found = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return found(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"resnetjax\[hub\]"):
        push(pretrained(), NAME, token="hf_secret")


def test_the_card_says_what_the_net_is_where_it_is_from_and_how_to_load_it():
    source = rj.Source(
        path="/home/somebody/secret/net.pth", dialect="torchvision", arch="resnet18",
        sha256="ab" * 32, licence="bsd-3-clause", assumptions=("stride_on='spatial'",),
    )  # fmt: skip
    text = card(pretrained(source=source), NAME, metrics={"top-1": "70 %"})
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "resnetjax",
        "license": "bsd-3-clause",
        "pipeline_tag": "image-classification",
        "tags": ["resnetjax", "jax", "flax", "resnet"],
    }
    # Counted by hand: convolutions, then two numbers a norm channel, then the head.
    parameters = 27 * 8 + 9 * (2 * 8 * 8 + 8 * 16 + 16 * 16) + 8 * 16 + 2 * (3 * 8 + 3 * 16) + 51
    for part in (
        f"{parameters:,} parameters", "3 classes", "resnet18", "load('hf://me/my-net')",
        "net.pth", "torchvision", "ab" * 32, "bsd-3-clause", "stride_on='spatial'", "top-1: 70 %",
        "the centre 16 x 20", "cat, dog, bird", "softmax",
    ):  # fmt: skip
        assert part in body, part
    assert "somebody" not in text
    code = body.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if "load" in line or "import" in line]) == 2


def test_of_a_net_of_which_little_is_known_the_card_claims_nothing():
    model, variables = rj.create(CONFIG.replace(num_classes=0))
    text = card(rj.Pretrained(model=model, variables=variables), NAME)
    assert "license:" not in text
    assert "licence: not known" in text
    assert "pipeline_tag" not in text
    assert "predict" not in text
    assert "Accuracy" not in text
    assert "Labels" not in text


def test_published_accuracies_and_those_of_runs_are_known(tmp_path):
    assert known_metrics("resnet50.tv2_in1k")["top-1"].startswith("80.858 %, at 224 pixels")
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    lines = [
        {"step": 1, "loss": 2.0, "accuracy": 0.9}, {"step": 5, "top1": 0.5, "top5": 0.75},
        {"step": 10, "top1": 0.625, "top5": 0.875}, {"step": 15, "top1": 0.6, "top5": 0.9},
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for path in (run, run / "best"):
        known = known_metrics(path)
        assert known["top-1"].startswith("62.50%")
        assert known["top-5"].startswith("87.50%")
        assert "after 10 steps" in known["top-1"]
    assert known_metrics(run / "latest") == {}
    assert known_metrics(tmp_path) == known_metrics("hf://me/net") == {}
