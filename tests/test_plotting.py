"""Pictures of runs show the numbers in their metrics."""

import numpy as np
import pytest
from PIL import Image

from metajax import plotting
from metajax.errors import MetajaxError
from metajax.runs.directory import MetricsLog, create_run

ITERATIONS, SEEDS, TASKS = 12, 2, 8
STEPS = 400  # per iteration and seed


def write_run(
    path,
    *,
    evaluated=True,
    inner_steps=1,
    algorithm="maml",
    family="point-goal",
    joint=False,
    measured=(),
    rounds=3,
    named="inner_steps",
):
    """Make a run with random metrics; return them. What is measured is the return halved."""
    generator = np.random.default_rng(0)
    before = generator.normal(-10, 1, (ITERATIONS, SEEDS))
    after = generator.normal(50, 1, (ITERATIONS, SEEDS))
    held_out = generator.normal(40, 5, (3, SEEDS, TASKS, rounds))
    config = {
        "algorithm_name": algorithm,
        "family_name": family,
        "algorithm": {named: inner_steps},
    }
    with create_run(path, config) as run, MetricsLog(run.metrics, iteration=-1) as log:
        for index in range(ITERATIONS):
            iteration = index + 1
            values = {"return_before": before[index], "return_after": after[index]}
            if joint:
                values = {"return": after[index]}
            log.write(iteration, {"environment_steps": iteration * STEPS * SEEDS, **values})
            if evaluated and iteration % 4 == 0:
                name = "final_held_out" if iteration == ITERATIONS else "held_out"
                found = held_out[index // 4]
                more = {f"{name}/{metric}": (found / 2).tolist() for metric in measured}
                log.write(iteration, {name: found.tolist(), **more})
    return before, after, held_out


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been written."""
    written = []
    monkeypatch.setattr(plotting, "_write", lambda figure, output: written.append(figure))
    return written


def middle(values):
    """The mean of the middle half of a number of values that four divides."""
    values = np.sort(np.ravel(values))
    return values[len(values) // 4 : -len(values) // 4].mean()


def label_of(line):
    return line.get_label().replace("\n", "")  # names of runs are wrapped


def lines(axes):
    return {label_of(line): line.get_xydata() for line in axes.get_lines()}


def test_learning_curves_are_means_over_seeds_with_the_range_around_them(tmp_path, figures):
    before, after, _ = write_run(tmp_path / "run")
    plotting.plot_run(tmp_path / "run", "unused.png")
    axes = figures[0].axes[0]
    x = STEPS * np.arange(1, ITERATIONS + 1)
    drawn = lines(axes)
    for label, values in (("before adaptation", before), ("after adaptation", after)):
        np.testing.assert_allclose(drawn[label], np.c_[x, values.mean(axis=1)])
    band = axes.collections[1].get_paths()[0].vertices  # of the second, after adaptation
    for index, steps in enumerate(x):
        here = band[band[:, 0] == steps][:, 1]
        assert here.min() == pytest.approx(after[index].min())
        assert here.max() == pytest.approx(after[index].max())


@pytest.mark.parametrize(
    ("inner_steps", "named"), [(1, "inner_steps"), (2, "inner_steps"), (2, "exploration_episodes")]
)
def test_held_out_points_are_interquartile_means_after_the_trained_steps(
    tmp_path, figures, inner_steps, named
):
    _, _, held_out = write_run(tmp_path / "run", inner_steps=inner_steps, named=named)
    plotting.plot_run(tmp_path / "run", "unused.png")
    (container,) = figures[0].axes[0].containers
    assert container.get_label() == f"held-out tasks after {inner_steps} step" + (
        "s" if inner_steps == 2 else ""
    )
    points, _, bars = container
    expected = [middle(returns[:, :, inner_steps]) for returns in held_out]
    np.testing.assert_allclose(np.asarray(points.get_xdata(), float), STEPS * np.array([4, 8, 12]))
    np.testing.assert_allclose(np.asarray(points.get_ydata(), float), expected)
    for (low, high), returns in zip(bars[0].get_segments(), held_out, strict=True):
        here = middle(returns[:, :, inner_steps])
        assert low[1] < here < high[1]
        # A 95 % interval of a mean of 16 values with standard deviation 5.
        assert 1 < high[1] - low[1] < 12


def test_agents_that_do_not_adapt_are_dots_at_0(tmp_path, figures):
    _, _, held_out = write_run(tmp_path / "run", algorithm="sac", joint=True, rounds=1)
    plotting.plot_run(tmp_path / "run", "unused.png")
    figures[0].draw_without_rendering()
    axes = figures[0].axes[1]
    dots = [line for line in axes.get_lines() if line.get_marker() == "." and len(line.get_xdata())]
    drawn = sorted(float(line.get_ydata()[0]) for line in dots)
    np.testing.assert_allclose(drawn, np.sort(held_out[-1].ravel()))
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [0]


def test_each_metric_of_the_environment_has_a_row_of_its_own(tmp_path, figures):
    _, _, held_out = write_run(tmp_path / "run", measured=("distance", "success"))
    plotting.plot_run(tmp_path / "run", "unused.png")
    panels = figures[0].axes
    assert [axes.get_ylabel() for axes in panels[::2]] == [
        "return per episode",
        "distance at an episode's end",
        "success at an episode's end",
    ]
    for course, adaptation in (panels[2:4], panels[4:6]):
        (container,) = course.containers
        expected = [middle(values[:, :, 1]) / 2 for values in held_out]
        np.testing.assert_allclose(np.asarray(container[0].get_ydata(), float), expected)
        (container,) = adaptation.containers
        expected = [middle(held_out[-1][:, :, k]) / 2 for k in range(3)]
        np.testing.assert_allclose(np.asarray(container[0].get_ydata(), float), expected)


def test_a_metric_that_only_later_evaluations_have_is_not_drawn(tmp_path, figures):
    write_run(tmp_path / "run", measured=("success",))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "held_out" in line)
    lines[first] = lines[first].partition(', "held_out/success"')[0] + "}"
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    plotting.plot_run(tmp_path / "run", "unused.png")
    assert len(figures[0].axes) == 2


def test_a_memory_is_shown_by_the_episodes_of_its_trial(tmp_path, figures):
    before, after, held_out = write_run(tmp_path / "run", algorithm="rl2")
    plotting.plot_run(tmp_path / "run", "unused.png")
    learning, rounds = figures[0].axes
    for label, values in (("first episode", before), ("last episode", after)):
        np.testing.assert_allclose(lines(learning)[label][:, 1], values.mean(axis=1))
    (container,) = learning.containers
    assert container.get_label() == "held-out tasks in the last round"
    expected = [middle(returns[:, :, 2]) for returns in held_out]
    np.testing.assert_allclose(np.asarray(container[0].get_ydata(), float), expected)
    assert rounds.get_xlabel() == "round of the trial"


def test_the_adaptation_curve_is_that_of_the_last_evaluation(tmp_path, figures):
    _, _, held_out = write_run(tmp_path / "run")
    plotting.plot_run(tmp_path / "run", "unused.png")
    axes = figures[0].axes[1]
    points = axes.containers[0][0]
    expected = [middle(held_out[-1][:, :, k]) for k in range(3)]
    np.testing.assert_allclose(points.get_xydata(), np.c_[range(3), expected])
    tasks = [line.get_ydata() for line in axes.get_lines() if line.get_linewidth() == 0.5]
    expected = held_out[-1].reshape(-1, 3)
    np.testing.assert_allclose([t for t in tasks if len(t)], expected)
    assert "end of training" in axes.get_title()


def test_of_many_tasks_some_are_drawn(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(plotting, "_MOST_TASKS", 7)
    _, _, held_out = write_run(tmp_path / "run")
    plotting.plot_run(tmp_path / "run", "unused.png")
    axes = figures[0].axes[1]
    tasks = [line.get_ydata() for line in axes.get_lines() if line.get_linewidth() == 0.5]
    expected = held_out[-1].reshape(-1, 3)[::3]  # of both seeds
    np.testing.assert_allclose([t for t in tasks if len(t)], expected)
    assert "each of 6 tasks" in lines(axes)


def test_a_run_that_was_never_evaluated_has_a_learning_curve(tmp_path, figures):
    write_run(tmp_path / "run", evaluated=False)
    plotting.plot_run(tmp_path / "run", "unused.png")
    assert "not evaluated yet" in figures[0].axes[1].texts[0].get_text()
    assert "after adaptation" in lines(figures[0].axes[0])


def test_several_runs_in_one_picture(tmp_path, figures):
    runs = [tmp_path / name for name in ("one", "two")]
    after = [write_run(run)[1] for run in runs]
    plotting.plot_comparison(runs, "unused.png")
    drawn = lines(figures[0].axes[0])
    colors = set()
    for run, values in zip(runs, after, strict=True):
        np.testing.assert_allclose(drawn[str(run)][:, 1], values.mean(axis=1))
        (line,) = (x for x in figures[0].axes[0].get_lines() if label_of(x) == str(run))
        colors.add(line.get_color())
    assert len(colors) == 2


def test_the_note_says_what_the_lines_are(tmp_path, figures):
    for name in ("maml", "rl2"):
        write_run(tmp_path / name, algorithm=name)
    plotting.plot_comparison([tmp_path / "rl2"], "unused.png")
    plotting.plot_comparison([tmp_path / "maml", tmp_path / "rl2"], "unused.png")
    notes = [" ".join(figure.get_suptitle().split()) for figure in figures]
    assert notes[0].startswith("last episode (dotted: first episode); mean")
    assert notes[1].startswith(
        "after adaptation (dotted: before adaptation), last episode (dotted: first episode); "
    )


def test_a_joint_run_has_one_return_and_is_fine_tuned(tmp_path, figures):
    _, after, held_out = write_run(tmp_path / "run", algorithm="ppo", joint=True)
    plotting.plot_run(tmp_path / "run", "unused.png")
    plotting.plot_comparison([tmp_path / "run"], "unused.png")
    learning, adaptation = figures[0].axes
    drawn = {label: xy for label, xy in lines(learning).items() if not label.startswith("_")}
    assert drawn.keys() == {"return without adaptation"}
    np.testing.assert_allclose(drawn["return without adaptation"][:, 1], after.mean(axis=1))
    (container,) = learning.containers
    assert container.get_label() == "held-out tasks"
    expected = [middle(returns[:, :, 0]) for returns in held_out]  # before any fine-tuning
    np.testing.assert_allclose(np.asarray(container[0].get_ydata(), float), expected)
    assert adaptation.get_xlabel() == "fine-tuning steps"
    assert len(figures[1].axes[0].get_lines()) == 1 and "dotted" not in figures[1].get_suptitle()


def test_an_old_joint_run_is_known_by_its_equal_returns(tmp_path, figures):
    with create_run(tmp_path / "run", {}) as run, MetricsLog(run.metrics, iteration=-1) as log:
        for iteration, value in enumerate((1.0, float("nan"), 3.0), start=1):
            values = {"return_before": [value], "return_after": [value]}
            log.write(iteration, {"environment_steps": iteration, **values})
    assert plotting.load_curves(tmp_path / "run").joint
    write_run(tmp_path / "maml")
    assert not plotting.load_curves(tmp_path / "maml").joint


def test_each_family_has_its_panel_and_each_run_is_drawn_once(tmp_path, figures, monkeypatch):
    for name, family in (("a", "point-goal"), ("b", "gridnav"), ("c", "point-goal")):
        write_run(tmp_path / name, family=family)
    monkeypatch.chdir(tmp_path)
    plotting.plot_comparison(["a", "b", "c", tmp_path / "a", "./b"], "unused.png")
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    legends = {
        family: [text.get_text() for text in axes.get_legend().get_texts()]
        for family, axes in panels.items()
    }
    assert legends == {"point-goal": ["a", "c"], "gridnav": ["b"]}


def test_no_text_is_cut(tmp_path):
    """Titles and names of runs lie within the picture, however long."""
    runs = [tmp_path / f"a-run-with-a-name-{'of-many-words-' * 8}{i}" for i in range(2)]
    for run, family in zip(runs, ("halfcheetah-vel", "point-goal"), strict=True):
        write_run(run, algorithm="learned-optimizer" * 4, family=family)
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "_write", lambda figure, output: figures.append(figure))
        plotting.plot_run(runs[0], "unused.png")
        plotting.plot_comparison(runs, "unused.png")
        plotting.plot_comparison(runs[:1], "unused.png")
    for figure in figures:
        figure.draw_without_rendering()
        texts = [axes.title for axes in figure.axes] + figure.texts
        texts += [text for axes in figure.axes for text in axes.get_legend().get_texts()]
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text.get_text()
            assert box.y0 >= 0 and box.y1 <= figure.bbox.height, text.get_text()


def test_tasks_that_are_not_finite_are_counted(tmp_path, figures):
    write_run(tmp_path / "run", evaluated=False)
    returns = np.random.default_rng(0).normal(size=(SEEDS, TASKS, 3))
    returns[0, :2, 1], returns[:, :, 2] = np.nan, np.inf
    with MetricsLog(tmp_path / "run" / "metrics.jsonl", iteration=ITERATIONS) as log:
        log.write(ITERATIONS, {"final_held_out": returns.tolist()})
    plotting.plot_run(tmp_path / "run", "unused.png")
    axes = figures[0].axes[1]
    points = np.asarray(axes.containers[0][0].get_ydata(), float)
    kept = np.sort(returns[:, :, 1][np.isfinite(returns[:, :, 1])])
    np.testing.assert_allclose(points[:2], [middle(returns[:, :, 0]), kept[3:-3].mean()])
    assert np.isnan(points[2])
    assert "(16 of 16 tasks not finite, left out)" in axes.containers[0].get_label()


def test_what_was_not_finite_is_a_gap(tmp_path, figures):
    with (
        create_run(
            tmp_path / "run", {"algorithm_name": "a", "family_name": "b", "algorithm": {}}
        ) as run,
        MetricsLog(run.metrics, iteration=-1) as log,
    ):
        for iteration, value in enumerate((1.0, float("nan"), 3.0), start=1):
            values = {"return_before": [0.0], "return_after": [value]}
            log.write(iteration, {"environment_steps": iteration, **values})
    plotting.plot_run(tmp_path / "run", "unused.png")
    drawn = lines(figures[0].axes[0])["after adaptation"][:, 1]
    np.testing.assert_array_equal(drawn, [1.0, np.nan, 3.0])


@pytest.mark.parametrize("suffix", plotting.FORMATS)
def test_every_format_is_written(tmp_path, suffix):
    write_run(tmp_path / "run")
    output = tmp_path / f"picture{suffix}"
    plotting.plot_run(tmp_path / "run", output)
    plotting.plot_comparison([tmp_path / "run"], tmp_path / f"both{suffix}")
    start = output.read_bytes()[:5]
    assert start == {".png": b"\x89PNG\r", ".pdf": b"%PDF-", ".svg": b"<?xml"}[suffix]
    if suffix == ".png":
        with Image.open(output) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 100


def test_mistakes(tmp_path):
    write_run(tmp_path / "run")
    for output, expected in (
        ("picture.bmp", "unknown picture format '.bmp'"),
        ("picture", "unknown picture format ''"),
        ("missing/picture.png", "cannot write .*: No such file or directory"),
    ):
        with pytest.raises(MetajaxError, match=expected):
            plotting.plot_run(tmp_path / "run", tmp_path / output)
    create_run(tmp_path / "new", {}).close()
    with pytest.raises(MetajaxError, match="has no metrics yet"):
        plotting.plot_run(tmp_path / "new", tmp_path / "picture.png")


def test_a_run_that_measures_no_returns_has_no_curve(tmp_path):
    with (
        create_run(tmp_path / "run", {}) as run,
        MetricsLog(run.metrics, iteration=-1) as log,
    ):
        log.write(1, {"environment_steps": 5, "loss": [0.5]})
    with pytest.raises(MetajaxError, match="no curve to draw: its algorithm measures no"):
        plotting.plot_run(tmp_path / "run", tmp_path / "unused.png")
