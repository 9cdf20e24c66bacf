"""From captioned files to a registered family with frozen encoders, through ONNX Runtime as it is served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.training.scenes import sample_scene, write_folder

torch = pytest.importorskip("torch")

from tests.unit.export.training.families import write_tiny  # noqa: E402 - only where torch is installed

from likewise.export.evaluate import query_scores, worst_ranks  # noqa: E402
from likewise.export.model_repository import load_repository  # noqa: E402
from likewise.export.runtime import load_family  # noqa: E402
from likewise.export.training.parser import RuleParser  # noqa: E402
from likewise.export.training.pipeline import train  # noqa: E402
from likewise.export.training.plans import CombinerPlan, EncoderPlan, Method, Options  # noqa: E402
from likewise.export.training.progress import TrainingError  # noqa: E402
from likewise.export.training.source import Problem, read_source  # noqa: E402
from likewise.export.training.survey import Survey, SurveyOptions, survey  # noqa: E402
from likewise.export.training.trials import features_of  # noqa: E402

_PLAN = CombinerPlan(steps=12, queries=32, shared=32, check_every=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(2)
    texts = write_folder(folder / "pictures", [sample_scene(rng) for _ in range(220)], rng)
    write_tiny(folder / "tiny", texts)
    return folder


@pytest.fixture(scope="module")
def surveyed(folder: Path) -> Survey:
    return survey(read_source(folder / "pictures").items, RuleParser(), SurveyOptions(held_out=0.4))


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> Options:
    return Options(
        tmp_path / "models",
        "mine",
        tmp_path / "work",
        base=folder / "tiny" / "repository",
        family="tiny",
        threads=1,
        combiner_plan=_PLAN,
    )


@pytest.mark.parametrize("method", ["combiner", "sum", "phrase-basis"])
def test_what_is_reported_is_what_the_registered_models_do(surveyed: Survey, options: Options, method: Method) -> None:
    outcome = train(surveyed, replace(options, method=method))

    served = load_family(options.out, "mine")
    source = load_family_features(surveyed, served)
    for result in outcome.report.tasks:
        features = features_of(surveyed.test[result.task], source, served.encode_texts)
        query = served.compose(features.references, features.composed)
        found = 100 * float((worst_ranks(query_scores(query, features.candidates), features.targets) <= 1).mean())
        assert found == pytest.approx(result.methods["composer"].at[1].value, abs=100.1 / result.templates)
    manifest = load_repository(options.out).latest("mine-composer").manifest
    assert manifest.evaluation["held-out templates"] == outcome.report.summary()
    assert outcome.unknown_words == ()


def load_family_features(surveyed: Survey, served: object) -> np.ndarray:
    from likewise.export.training.pictures import decode

    return np.concatenate(
        [served.encode_images(batch.pixels) for batch in decode(surveyed.items, served.preprocessing)]  # type: ignore[attr-defined]
    )


def test_the_weight_of_the_sum_is_not_chosen_on_the_test_images(surveyed: Survey, options: Options) -> None:
    blind = replace(surveyed, test=surveyed.validation)

    first = train(surveyed, replace(options, method="sum"))
    second = train(blind, replace(options, method="sum", name="again"))

    assert first.setup == second.setup


def test_pictures_are_encoded_once_for_all_runs_in_a_work_folder(surveyed: Survey, options: Options) -> None:
    train(surveyed, replace(options, method="sum"))
    stages: list[str] = []

    outcome = train(surveyed, options, progress=lambda stage, share, note: stages.append(stage))

    assert "encoding images" not in stages
    assert "training the Combiner" in stages
    assert outcome.registered.versions == {"mine-image": 1, "mine-text": 1, "mine-composer": 2}


def test_an_image_that_cannot_be_read_is_named_and_left_out_of_every_triplet(folder: Path, options: Options) -> None:
    listing = read_source(folder / "pictures")
    whole = survey(listing.items, RuleParser(), SurveyOptions(held_out=0.4))
    row = int(whole.triplets.reference[0])
    told: list[Problem] = []
    bad = listing.items[row].path.read_bytes()

    def decoder(data: bytes) -> "object":
        from likewise.export.training.pictures import decode_plainly

        return decode_plainly(b"" if data == bad else data)

    outcome = train(whole, options, decoder=decoder, on_problems=lambda problems: told.extend(problems))  # type: ignore[arg-type]

    assert [problem.place for problem in told] == [listing.items[row].place]
    assert row not in whole.without([row]).triplets.reference
    assert outcome.report.tasks


def test_a_refusal_of_bad_images_registers_nothing(surveyed: Survey, options: Options) -> None:
    def refuse(problems: tuple[Problem, ...]) -> None:
        raise TrainingError(f"{len(problems)} bad")

    def decoder(data: bytes) -> object:
        raise OSError("damaged")

    with pytest.raises(TrainingError, match="220 bad"):
        train(surveyed, options, decoder=decoder, on_problems=refuse)  # type: ignore[arg-type]
    assert not options.out.exists()


@pytest.mark.parametrize("encoders", ["fine-tune", "train"])
def test_trained_encoders_are_exported_first_and_give_a_space_of_their_own(
    surveyed: Survey, options: Options, encoders: str
) -> None:
    plan = EncoderPlan(steps=2, batch=16, check_every=2)
    chosen = replace(options, encoders=encoders, encoder_plan=plan, method="sum", views=2)  # type: ignore[arg-type]

    outcome = train(surveyed, chosen)

    base = load_repository(options.base).family("tiny").image_encoder.manifest.space
    assert outcome.registered.space != base
    assert load_repository(options.out).family("mine").image_encoder.manifest.space == outcome.registered.space


def test_words_that_the_text_encoder_does_not_know_are_named(surveyed: Survey, options: Options) -> None:
    strange = replace(surveyed.items[0], caption="A zaffre hexagon, gargantuan.")
    told = replace(surveyed, items=[strange, *surveyed.items[1:]])

    outcome = train(told, replace(options, method="sum"))

    assert outcome.unknown_words == ("gargantuan", "zaffre")


def test_a_corpus_that_gives_too_little_is_refused_with_the_numbers(surveyed: Survey) -> None:
    surveyed.refuse_if_poor(len(surveyed.triplets))

    with pytest.raises(
        TrainingError, match=r"triplets could be mined from 132 training images \(focus attribute \d+, "
    ):
        surveyed.refuse_if_poor(len(surveyed.triplets) + 1)
    with pytest.raises(TrainingError, match="only 0 test templates could be mined from 44 images"):
        replace(surveyed, test={}).refuse_if_poor(1)


def test_no_image_and_no_copy_of_one_is_in_two_parts(folder: Path, make_copy: Callable[[Path], Path]) -> None:
    surveyed = survey(read_source(make_copy(folder / "pictures")).items, RuleParser(), SurveyOptions(held_out=0.4))

    digests = [
        {surveyed.items[int(row)].path.read_bytes() for row in part}
        for part in (surveyed.split.training, surveyed.split.validation, surveyed.split.test)
    ]
    assert digests[0].isdisjoint(digests[1] | digests[2])
    assert digests[1].isdisjoint(digests[2])


@pytest.fixture
def make_copy(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(source: Path) -> Path:
        target = tmp_path / "copies"
        target.mkdir()
        for file in sorted(source.iterdir())[:160]:
            for name in (file.name, f"copy-{file.name}"):
                (target / name).write_bytes(file.read_bytes())
        return target

    return copy
