"""What a recipe may set for speech recognition."""

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
        "transcribe", description="Multilingual Whisper: write what is said, or its English translation."
    )
    max_seconds: PositiveFloat = Field(
        30.0, description="The longest recording to train on or score; longer ones are bad rows (data.on_bad_row)."
    )
    window: Literal["auto", "buckets", "full"] | PositiveFloat = Field(
        "auto",
        description="Seconds that Whisper's encoder hears; auto: the longest training clip's; buckets: the smallest "
        "that a clip fits into, of three windows chosen for the training clips; full: its 30.",
    )
    predict_window: Literal["full", "auto", "buckets"] = Field(
        "full",
        description="Predict in Whisper's whole window, as a pipeline does; or (auto) in training's where a recording "
        "fits into it: several times faster, and a word may come out differently; or (buckets), after training with "
        "window: buckets, in the whole seconds that each recording needs.",
    )
    timestamps: bool = Field(False, description="Predict with times: segments that subtitles are made of.")
    chunk_seconds: PositiveFloat | None = Field(
        None, description="Predict long recordings in parts of so many seconds; default: Whisper's 30, else 20."
    )
    text_case: Literal["auto", "keep", "lower", "upper"] = Field(
        "auto", description="CTC: letter case of the transcripts; auto: as the checkpoint's vocabulary has it."
    )
    vocabulary: Literal["auto", "train"] = Field(
        "auto", description="CTC: auto: the checkpoint's characters, if it has any; train: those of the train split."
    )
    unknown_characters: Literal["auto", "drop", "stop"] = Field(
        "auto",
        description="Characters of transcripts that the tokenizer lacks, which would be learned as <unk>. auto: "
        "leave out punctuation and symbols, treat training rows with other ones as bad (data.on_bad_row); drop: "
        "leave out all; stop: any of them makes a bad row.",
    )
    special_tokens: Literal["stop", "drop"] = Field(
        "stop",
        description="Transcripts that hold special tokens (<|0.00|>, <|en|>, <unk>): stop: bad rows "
        "(data.on_bad_row); drop: leave the tokens out. Timestamps are not trained.",
    )
    empty_transcripts: Literal["stop", "keep"] = Field(
        "stop",
        description="Recordings with an empty transcript: stop: bad rows (data.on_bad_row); keep: silence, of which "
        "the model learns to write nothing.",
    )
    freeze_feature_encoder: bool = Field(True, description="CTC: leave the convolutions in front as they are.")
    mask_time_prob: Fraction | None = Field(
        None, description="SpecAugment: part of the time steps to mask; default here and below: the checkpoint's own."
    )
    mask_time_length: PositiveInt | None = Field(None, description="SpecAugment: time steps of one mask.")
    mask_feature_prob: Fraction | None = Field(None, description="SpecAugment: part of the features to mask.")
    mask_feature_length: PositiveInt | None = Field(None, description="SpecAugment: features of one mask.")
    speed_factors: Annotated[list[Annotated[float, Field(ge=0.5, le=2.0)]], Field(min_length=1)] = Field(
        [1.0], description="Play each training clip at one of these speeds, drawn anew each epoch ([0.9, 1.0, 1.1])."
    )
    noise_probability: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Part of the training clips that get white noise, drawn anew each epoch."
    )
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Range of the noise's distance from the clip's power, in decibels."
    )

    @model_validator(mode="after")
    def _windows_fit(self) -> SpeechRecognitionSettings:
        if self.predict_window == "buckets" and self.window != "buckets":
            raise ValueError(
                "predict_window: buckets is for models that were trained so (window: buckets); one that was trained in "
                "a single window mishears what fills a shorter one. Use auto or full"
            )
        return self

    @model_validator(mode="after")
    def _range_in_order(self) -> SpeechRecognitionSettings:
        low, high = self.noise_snr_db
        if not (math.isfinite(low) and low <= high < math.inf):
            raise ValueError(f"noise_snr_db: [{low:g}, {high:g}] is no range from low to high")
        return self
