"""Settings of speech recognition in a recipe."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sft_hf.core.recipe.component_settings import TaskSettings
from sft_hf.core.recipe.sections import Fraction


class SpeechRecognitionSettings(TaskSettings):
    """Settings of the task."""

    modality = "speech"
    pipeline_tag = "automatic-speech-recognition"
    writes_transcripts = True

    name: Literal["speech_recognition"] = "speech_recognition"
    language: str | None = Field(
        None,
        description="Language spoken (english or en). Multilingual Whisper needs it; letter case and the normalized "
        "error rates follow its rules.",
    )
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="Multilingual Whisper: transcribe, or translate into English."
    )
    max_seconds: PositiveFloat = Field(
        30.0, description="The longest recording to train on or score; longer ones are bad rows (data.on_bad_row)."
    )
    window: Literal["auto", "buckets", "full"] | PositiveFloat = Field(
        "auto",
        description="Length of Whisper's input window in seconds; auto: the longest training clip; buckets: the "
        "smallest of three windows, chosen for the training clips, that a clip fits into; full: 30.",
    )
    predict_window: Literal["full", "auto", "buckets"] = Field(
        "full",
        description="Window for predictions. full: 30 s, like a pipeline; auto: the window of training if a "
        "recording fits into it, which is several times faster and may change words; buckets: as many whole "
        "seconds as each recording needs, only after training with window: buckets.",
    )
    timestamps: bool = Field(False, description="Predict segments with times, as needed for subtitles.")
    chunk_seconds: PositiveFloat | None = Field(
        None, description="Predict long recordings in chunks of N seconds; default: 30 for Whisper, otherwise 20."
    )
    text_case: Literal["auto", "keep", "lower", "upper"] = Field(
        "auto", description="CTC: letter case of the transcripts; auto: that of the pretrained model's vocabulary."
    )
    vocabulary: Literal["auto", "train"] = Field(
        "auto", description="CTC: auto: the pretrained model's characters, if any; train: those of the train split."
    )
    unknown_characters: Literal["auto", "drop", "stop"] = Field(
        "auto",
        description="Characters in transcripts that the tokenizer lacks (they would become <unk>). auto: remove "
        "punctuation and symbols, and treat training rows with other unknown characters as bad (data.on_bad_row); "
        "drop: remove all; stop: treat rows with any as bad.",
    )
    special_tokens: Literal["stop", "drop"] = Field(
        "stop",
        description="Transcripts that contain special tokens (<|0.00|>, <|en|>, <unk>): stop: treat as bad rows "
        "(data.on_bad_row); drop: remove the tokens. Timestamps are not trained.",
    )
    empty_transcripts: Literal["stop", "keep"] = Field(
        "stop",
        description="Recordings with an empty transcript: stop: treat as bad rows (data.on_bad_row); keep: train "
        "the model to output nothing for them.",
    )
    freeze_feature_encoder: bool = Field(True, description="CTC: do not train the convolutional feature encoder.")
    mask_time_prob: Fraction | None = Field(
        None,
        description="SpecAugment: fraction of the time steps to mask; default here and below: the pretrained model's.",
    )
    mask_time_length: PositiveInt | None = Field(None, description="SpecAugment: time steps of one mask.")
    mask_feature_prob: Fraction | None = Field(None, description="SpecAugment: fraction of the features to mask.")
    mask_feature_length: PositiveInt | None = Field(None, description="SpecAugment: features of one mask.")
    speed_factors: Annotated[list[Annotated[float, Field(ge=0.5, le=2.0)]], Field(min_length=1)] = Field(
        [1.0],
        description="Change the speed of each training clip to one of these factors, drawn in each epoch "
        "([0.9, 1.0, 1.1]).",
    )
    noise_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Fraction of the training clips with added white noise, drawn in each epoch."
    )
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Range of the signal-to-noise ratio in decibels."
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> SpeechRecognitionSettings:
        if self.predict_window == "buckets" and self.window != "buckets":
            raise ValueError(
                "predict_window: buckets requires a model trained with window: buckets; a model trained with one "
                "window length is inaccurate with shorter windows. Use auto or full"
            )
        return self

    @model_validator(mode="after")
    def _range_in_order(self) -> SpeechRecognitionSettings:
        low, high = self.noise_snr_db
        if not (math.isfinite(low) and low <= high < math.inf):
            raise ValueError(f"noise_snr_db: [{low:g}, {high:g}] is not a range from low to high")
        return self
