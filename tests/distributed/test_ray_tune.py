"""Jobs for Ray Tune: the packs of all studies, each once; a pack that failed for good ends nothing else."""

import pytest

from drcorl_ray.config import ScalingConfig, SearchConfig
from drcorl_ray.data.source import task_store
from drcorl_ray.data.task_data import TaskData
from drcorl_ray.distributed.ray_tune import PackSearch, Searcher, check_room, pack_resources, run_packs
from drcorl_ray.errors import UserError
from drcorl_ray.runs.directory import RunDirectory
from drcorl_ray.search.pack import PackTrainer
from drcorl_ray.search.plan import SearchPlan
from drcorl_ray.search.study import Score, SearchStudy
from tests.helpers.fakes import answer
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.ray  # imports Ray, but starts no cluster
SETTINGS = SearchConfig.model_validate(
    {"space": {"k": {"low": 0.0, "high": 1.0}}, "configurations": 4, "members_per_pack": 2, "concurrent_packs": 1}
)


def two_plans(folder) -> list[SearchPlan]:
    studies = [SearchStudy(folder / f"{name}.journal", name, SETTINGS, [], 0) for name in ("a", "b")]
    return [SearchPlan(study, RunDirectory(folder), [f"task-{study.name}"], [100], 2) for study in studies]


def job(study: str, number: int) -> dict:
    return {"study": study, "number": number, "task": f"task-{study}"}


def finish(searcher: PackSearch, plan: SearchPlan, trial: str) -> None:
    pack, task = plan.jobs()[0]
    answer(plan, pack, task, lambda params, task: Score(0.1, 0.1))
    searcher.on_trial_complete(trial, {"step": -1})


def test_each_pack_of_all_studies_is_suggested_once(tmp_path):
    a, b = two_plans(tmp_path)
    searcher = PackSearch([a, b])
    assert [searcher.suggest("1"), searcher.suggest("2")] == [job("a", 0), job("b", 0)]
    assert searcher.suggest("3") is None  # both studies wait for their oldest pack
    finish(searcher, b, "2")
    assert searcher.suggest("3") == job("b", 1)
    finish(searcher, a, "1")
    assert searcher.suggest("4") == job("a", 1)
    finish(searcher, a, "4")
    finish(searcher, b, "3")
    assert searcher.suggest("5") == Searcher.FINISHED


def test_a_pack_that_failed_for_good_is_left_to_a_resumed_search(tmp_path):
    """Fault: suggest it for ever, or end the search while other packs run."""
    a, b = two_plans(tmp_path)
    searcher = PackSearch([a, b])
    for trial in ("1", "2"):
        searcher.suggest(trial)
    searcher.on_trial_complete("1", error=True)
    assert searcher.suggest("3") is None
    finish(searcher, b, "2")
    assert searcher.suggest("3") == job("b", 1)
    finish(searcher, b, "3")
    assert searcher.suggest("4") == Searcher.FINISHED
    assert PackSearch(two_plans(tmp_path)).suggest("again") == job("a", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_that_the_user_can_fix_in_a_pack_is_one_line(tmp_path):
    """Fault: the end of a traceback, after max_failures retries."""
    config = tiny_config(tmp_path, "search.configurations=2")
    data, run = TaskData.open(task_store("PointCircle", config.data, config.run)), RunDirectory.prepare(config)
    study = SearchStudy(run.study("PointCircle"), "PointCircle", config.search, [], 0)
    weights = {"PointCircle": (tmp_path / "absent.safetensors",)}
    trainer = PackTrainer(config, run, {"PointCircle": (data.task, data.store)}, weights)
    with pytest.raises(UserError) as caught:
        run_packs(trainer, [SearchPlan(study, run, ["PointCircle"], [80], 2)], config.scaling, run)
    assert f"1 packs failed ({tmp_path / 'absent.safetensors'}: cannot be read" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "run.resume=true" in str(caught.value)


@pytest.mark.usefixtures("ray_cluster")
def test_a_pack_that_fits_on_no_machine_is_refused_at_once():
    check_room(ScalingConfig(cpus_per_worker=2.0))
    with pytest.raises(UserError, match=r"a pack books \{'CPU': 3.0\}, and the largest machine here has \{'CPU': 2.0\}"):
        check_room(ScalingConfig(cpus_per_worker=3.0))
    with pytest.raises(UserError, match="GPU"):
        check_room(ScalingConfig(use_gpu=True, gpus_per_pack=2.0))


def test_a_pack_books_a_share_of_a_gpu():
    assert pack_resources(ScalingConfig(cpus_per_worker=0.5)) == {"CPU": 0.5}
    assert pack_resources(ScalingConfig(use_gpu=True, gpus_per_pack=0.25)) == {"CPU": 1.0, "GPU": 0.25}
