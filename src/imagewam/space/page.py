"""The page: fields, buttons, and which function of a session each of them calls."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.helpers import Examples

from .episodes import EpisodeStore
from .fields import ALL, gallery, pictures
from .handlers import Handlers
from .observations import default_state
from .policies import LoadedPolicy, PolicyStore
from .session import MOST_MOMENTS, MOST_SEEDS, MOST_STEPS
from .shown import PRESS_PREDICT, policy_note, quiet, state_rows
from .style import INTRODUCTION, TITLE

# Seconds after which a session that nobody uses is forgotten, and between and after which its files are deleted.
SESSION_SECONDS, FILE_SECONDS = 3600, (300, 3600)


MOST_EXAMPLES = 20


class Page:
    """One page for all users; what belongs to one of them lies in `gr.State`.

    Args:
        policy: that the page opens with.
        dataset: that its episode fields open with, or nothing.
    """

    def __init__(self, policies: PolicyStore, episodes: EpisodeStore, policy: str, dataset: str = ""):
        self.handlers = Handlers(policies, episodes)
        self.policies = policies
        self.default_policy, self.default_dataset = policy, dataset

    def build(self) -> gr.Blocks:
        """The page, with the default policy's names in its fields; it is loaded for them."""
        loaded = self.policies.get(self.default_policy)
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=FILE_SECONDS) as page:
            self._states()
            gr.Markdown(INTRODUCTION, elem_id="introduction")
            with gr.Row(equal_height=False):
                with gr.Column(scale=5, min_width=330):
                    self._inputs(loaded)
                with gr.Column(scale=7, min_width=330):
                    self._results(loaded)
            self._wire()
            page.load(
                self.handlers.load, [self.policy_field, self.robot_field], self._of_policy, show_progress="hidden"
            ).then(
                self.handlers.first_episode,
                [self.policy, self.dataset_field],
                self._of_episode,
                show_progress="hidden",
            )
        return page.queue(max_size=32, default_concurrency_limit=2)

    # Layout

    def _states(self) -> None:
        def forgotten(value: Any = None) -> gr.State:
            return gr.State(value, time_to_live=SESSION_SECONDS)

        self.policy = forgotten((self.default_policy, ""))
        self.moment, self.prediction = forgotten(), forgotten()

    def _inputs(self, loaded: LoadedPolicy) -> None:
        with gr.Accordion("Policy", open=False, elem_id="policy-box"):
            self.policy_field = gr.Textbox(
                self.default_policy, label="Checkpoint", info="Repository on the hub, or a folder.", elem_id="policy"
            )
            self.robot_field = gr.Textbox("", label="Robot", info="Only of a policy that drives several.")
            self.load_button = gr.Button("Load", elem_id="load")
        self.note = gr.Markdown(policy_note(loaded), elem_id="note")
        with gr.Accordion("Recorded episode", open=True, elem_id="episode-box"):
            with gr.Row():
                self.dataset_field = gr.Textbox(
                    self.default_dataset, label="Dataset", info="LeRobot folder or repository.", elem_id="dataset"
                )
                self.episode_field = gr.Number(0, label="Episode", precision=0, minimum=0, min_width=80, scale=0)
            self.examples = self._examples()
            self.open_button = gr.Button("Open episode", size="sm", elem_id="open")
            self.frame = gr.Slider(0, 1, 0, step=1, label="Frame", elem_id="frame", interactive=True)
            self.follow = gr.Checkbox(True, label="Predict when the frame moves", elem_id="follow")
            with gr.Row(elem_id="places"):
                self.places = {
                    share: gr.Button(label, size="sm", min_width=60)
                    for label, share in (("Start", 0.0), ("Middle", 0.5), ("End", 1.0))
                }
        with gr.Row(elem_id="cameras"):
            self.images = pictures()
        self.instruction = gr.Textbox(label="Instruction", lines=2, max_length=1000, elem_id="instruction")
        with gr.Accordion("State, mode, seed", open=False, elem_id="settings-box"):
            self.state = gr.Dataframe(
                state_rows(loaded, default_state(loaded.processor)),
                headers=["state", "value"],
                datatype=["str", "number"],
                type="array",
                column_count=(2, "fixed"),
                row_count=(len(loaded.processor.contract.state.names), "fixed"),
                static_columns=[0],
                label="State, in the robot's units",
                interactive=True,
                elem_id="state",
            )
            with gr.Row():
                self.mode = gr.Dropdown(loaded.modes, value=loaded.modes[0], label="Edit mode", elem_id="mode")
                self.steps = gr.Slider(
                    1, MOST_STEPS, loaded.policy.config.num_inference_steps, step=1, label="Euler steps"
                )
            with gr.Row():
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                self.num_seeds = gr.Slider(1, MOST_SEEDS, 4, step=1, label="Seeds, for the band")
        self.predict_button = gr.Button("Predict", variant="primary", elem_id="predict")

    def _results(self, loaded: LoadedPolicy) -> None:
        with gr.Tabs(elem_id="results"):
            with gr.Tab("Attention", id="attention"):
                self._attention_tab()
            with gr.Tab("Actions", id="actions"):
                self.chart = gr.HTML(quiet(PRESS_PREDICT), elem_id="chart")
                self.latency = gr.HTML(elem_id="latency")
            with gr.Tab("Future frame", id="future"):
                self._future_tab()
            with gr.Tab("Compare", id="compare"):
                self._compare_tab(loaded)

    def _attention_tab(self) -> None:
        self.overlay = gallery("Where the actions look", "overlay")
        with gr.Row():
            self.layer = gr.Dropdown([("all (mean)", ALL)], value=ALL, label="Layer", min_width=140, elem_id="layer")
            self.head = gr.Dropdown(["mean", "max"], value="mean", label="Head", min_width=140, elem_id="head")
            self.action = gr.Dropdown([("all (mean)", ALL)], value=ALL, label="Action step", min_width=140)
            self.step = gr.Dropdown([("all (mean)", ALL)], value=ALL, label="Denoising step", min_width=140)
        with gr.Row():
            self.rollout = gr.Checkbox(False, label="Rollout over layers", min_width=200, elem_id="rollout")
            self.span = gr.Radio(["image"], value="image", label="Attention to", min_width=200, elem_id="span")
            self.opacity = gr.Slider(0, 1, 0.7, step=0.05, label="Opacity", min_width=200, elem_id="opacity")
        self.shares = gr.HTML(elem_id="shares")
        with gr.Accordion("Words", open=False):
            self.words = gr.HTML(elem_id="words")
        with gr.Accordion("Strip over the episode", open=False, elem_id="strip-box"):
            self.moments = gr.Slider(2, MOST_MOMENTS, 6, step=1, label="Moments")
            with gr.Row():
                self.strip_button = gr.Button("Draw the strip", elem_id="draw-strip")
                self.strip_cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-strip")
            self.strip = gr.Image(
                label="Attention over the episode", format="png", interactive=False, elem_id="strip",
                alt_text="Moments of the episode from left to right, cameras below one another, under their attention",
            )  # fmt: skip

    def _future_tab(self) -> None:
        gr.Markdown(
            "The frame that the policy foresees at the end of its chunk, decoded only for looking: acting does not "
            "need it."
        )
        with gr.Row():
            self.frame_steps = gr.Slider(1, MOST_STEPS, 10, step=1, label="Steps of the frame", elem_id="frame-steps")
            self.foresee_button = gr.Button("Decode the frame", variant="primary", elem_id="foresee")
            self.foresee_cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-foresee")
        self.future = gallery("Now, foreseen, true, difference", "future", columns=4)
        self.future_numbers = gr.HTML(elem_id="future-numbers")
        self.video = gallery("The foreseen video, frame by frame", "video", columns=4, visible=False)

    def _compare_tab(self, loaded: LoadedPolicy) -> None:
        gr.Markdown("**A** is the policy and mode of the fields, **B** the one below; both see the same fields.")
        with gr.Row():
            self.policy_b = gr.Textbox(
                "", label="Checkpoint B", placeholder="the same as A", info="Empty: A's.", elem_id="policy-b"
            )
            self.mode_b = gr.Textbox(
                loaded.modes[1] if len(loaded.modes) > 1 else "",
                label="Edit mode B",
                info="Empty: the one that B was trained in.",
                elem_id="mode-b",
            )
        self.frames_too = gr.Checkbox(False, label="Decode both future frames as well", elem_id="frames-too")
        with gr.Row():
            self.compare_button = gr.Button("Compare", variant="primary", elem_id="compare")
            self.compare_cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-compare")
        with gr.Row():
            self.overlay_a = gallery("A: where its actions look", "overlay-a")
            self.overlay_b = gallery("B: where its actions look", "overlay-b")
        self.compared_chart = gr.HTML(elem_id="compared-chart")
        self.compared_numbers = gr.HTML(elem_id="compared-numbers")
        with gr.Row():
            self.future_a = gallery("A: foreseen", "future-a")
            self.future_b = gallery("B: foreseen", "future-b")

    def _examples(self) -> Examples | None:
        """Episodes of the dataset that the page opens with, by what they were told."""
        if not self.default_dataset:
            return None
        told = self.handlers.episodes.instructions(self.default_dataset)
        return gr.Examples(
            [[self.default_dataset, number] for number in told],
            [self.dataset_field, self.episode_field],
            example_labels=list(told.values()),
            examples_per_page=MOST_EXAMPLES,
            elem_id="examples",
        )

    # Wiring

    @property
    def _of_policy(self) -> list:
        """What loading a policy fills."""
        return [
            self.policy, self.note, *self.images, self.state, self.mode, self.steps, self.moment, self.prediction,
            self.overlay, self.chart,
        ]  # fmt: skip

    @property
    def _of_episode(self) -> list:
        return [self.frame, *self._of_frame]

    @property
    def _of_frame(self) -> list:
        return [*self.images, self.instruction, self.state, self.moment]

    @property
    def _given(self) -> list:
        fields = [self.instruction, self.state, self.moment, self.mode, self.steps, self.seed, self.num_seeds]
        return [self.policy, *self.images, *fields]

    def _wire(self) -> None:
        looked_at = [self.layer, self.head, self.action, self.step, self.rollout, self.span, self.opacity]
        of_attention = [self.overlay, self.shares, self.words]
        of_prediction = [self.prediction, self.chart, self.latency, *looked_at]

        # A field of the choices says nothing about a prediction that failed; the message does.
        waiting = [self.overlay, self.chart]

        def predicting(event, handler: Callable, inputs: list) -> None:
            event(handler, inputs, of_prediction, show_progress_on=waiting, api_name=False).success(
                self.handlers.attend, [self.prediction, self.policy, *looked_at], of_attention, show_progress="hidden"
            )

        def following(event) -> None:
            predicting(event.success, self.handlers.predict_after, [self.follow, *self._given])

        self.load_button.click(
            self.handlers.load, [self.policy_field, self.robot_field], self._of_policy, api_name="load"
        )
        opening = {
            "fn": self.handlers.open_episode,
            "inputs": [self.policy, self.dataset_field, self.episode_field],
            "outputs": self._of_episode,
        }
        following(self.open_button.click(**opening, api_name="open"))
        if self.examples is not None:
            following(self.examples.load_input_event.success(**opening, api_name=False))
        shown = {
            "fn": self.handlers.show,
            "inputs": [self.policy, self.dataset_field, self.episode_field, self.frame],
            "outputs": self._of_frame,
            "show_progress": "hidden",
        }
        # Only the last of many moves matters.
        following(self.frame.change(**shown, trigger_mode="always_last", api_name=False))
        for share, button in self.places.items():
            button.click(
                functools.partial(self.handlers.place, share),
                [self.policy, self.dataset_field, self.episode_field],
                self.frame,
                show_progress="hidden",
                api_name=False,
            )
        for image in self.images:
            image.input(lambda: None, None, self.moment, queue=False, api_name=False)
        predicting(self.predict_button.click, self.handlers.predict, self._given)
        predicting(self.instruction.submit, self.handlers.predict, self._given)
        for field in looked_at:
            field.input(
                self.handlers.attend, [self.prediction, self.policy, *looked_at], of_attention, show_progress="hidden",
                trigger_mode="always_last", api_name=False,
            )  # fmt: skip
        strip = self.strip_button.click(
            self.handlers.strip, [*self._given, self.moments, *looked_at], self.strip, api_name=False
        )
        self.strip_cancel.click(None, cancels=[strip])
        foresee = self.foresee_button.click(
            self.handlers.foresee, [*self._given, self.frame_steps], [self.future, self.future_numbers, self.video],
            api_name=False,
        )  # fmt: skip
        self.foresee_cancel.click(None, cancels=[foresee])
        compare = self.compare_button.click(
            self.handlers.compare,
            [*self._given, self.policy_b, self.mode_b, self.frames_too, self.frame_steps],
            [
                self.overlay_a, self.overlay_b, self.compared_chart, self.compared_numbers, self.future_a,
                self.future_b,
            ],
            api_name=False,
        )  # fmt: skip
        self.compare_cancel.click(None, cancels=[compare])
