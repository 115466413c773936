"""Models of transformers: one or more of every architecture, tiny, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tests.zoo.entry import Built, Entry, floats, package, tokens

_BODY = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_DECODER = _BODY | {"num_key_value_heads": 2, "head_dim": 8, "use_cache": False} | _SPECIAL
# no random skipping of layers while training: that is a decision of Python, not of the graph
_SEQ2SEQ = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "use_cache": False,
    "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
} | _SPECIAL  # fmt: skip
_SPEECH = _BODY | {
    "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 2), "conv_kernel": (10, 4, 4),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False, "layerdrop": 0.0,
}  # fmt: skip
_T5 = {
    "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "use_cache": False, "decoder_start_token_id": 0,
}  # fmt: skip


def text(mask: bool = True) -> dict[str, Any]:
    """Token ids and, as tokenizers give it, an attention mask with a padded row."""
    ids = tokens()
    if not mask:
        return {"input_ids": ids}
    seen = torch.ones_like(ids)
    seen[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": seen}


def both() -> dict[str, Any]:
    """Inputs of an encoder and a decoder."""
    return text() | {"decoder_input_ids": tokens(2, 7)}


def pixels(side: int = 32) -> dict[str, Any]:
    """A batch of images."""
    return {"pixel_values": floats(2, 3, side, side)}


def pixels_and_text() -> dict[str, Any]:
    """Images with captions."""
    return text() | pixels()


def sound() -> dict[str, Any]:
    """A batch of wave forms."""
    return {"input_values": floats(2, 1600)}


def mel() -> dict[str, Any]:
    """A batch of spectrograms."""
    return {"input_features": floats(2, 16, 60)}


def frames() -> dict[str, Any]:
    """A batch of spectrograms, time first."""
    return {"input_features": floats(2, 60, 16)}


@dataclass(frozen=True)
class _Row:
    """A class, the options of its configuration and its inputs."""

    name: str
    options: Mapping[str, Any]
    inputs: Callable[[], dict[str, Any]] = text
    config: str = ""


def _options(**options: Any) -> dict[str, Any]:
    return options


_ENCODERS = (
    _Row("BertModel", _BODY),
    _Row("BertForSequenceClassification", _BODY),
    _Row("BertForQuestionAnswering", _BODY),
    _Row("BertForMaskedLM", _BODY),
    _Row("RobertaModel", _BODY | _options(pad_token_id=1)),
    _Row("XLMRobertaModel", _BODY | _options(pad_token_id=1)),
    _Row("CamembertForTokenClassification", _BODY | _options(pad_token_id=1)),
    _Row("DistilBertForSequenceClassification",
         _options(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64)),
    _Row("AlbertModel", _BODY | _options(embedding_size=16)),
    _Row("ElectraModel", _BODY | _options(embedding_size=16)),
    _Row("DebertaModel", _BODY | _options(pos_att_type=["c2p", "p2c"], relative_attention=True)),
    _Row("DebertaV2Model", _BODY | _options(
        pos_att_type=["c2p", "p2c"], relative_attention=True, position_buckets=8,
        share_att_key=True, norm_rel_ebd="layer_norm")),
    _Row("MobileBertModel", _BODY | _options(
        embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32)),
    _Row("SqueezeBertModel", _BODY | _options(embedding_size=32)),
    _Row("MPNetModel", _BODY),
    _Row("ConvBertModel", _BODY | _options(embedding_size=32, head_ratio=2)),
    _Row("FNetModel", _BODY, partial(text, mask=False)),
    _Row("NystromformerModel", _BODY | _options(segment_means_seq_len=12, num_landmarks=12)),
    _Row("LayoutLMModel", _BODY),
    _Row("RoFormerModel", _BODY | _options(embedding_size=32)),
    _Row("RemBertModel", _BODY | _options(input_embedding_size=16, output_embedding_size=16)),
    _Row("MegatronBertModel", _BODY),
    _Row("ErnieModel", _BODY),
    _Row("EsmModel", _BODY | _options(pad_token_id=1, mask_token_id=3)),
    _Row("IBertModel", _BODY | _options(pad_token_id=1)),
    _Row("ModernBertModel", _BODY | _SPECIAL | _options(cls_token_id=1, sep_token_id=2)),
    _Row("NomicBertModel", _BODY | _options(pad_token_id=0)),
    _Row("EuroBertModel", _DECODER),
    _Row("XLMModel", _options(vocab_size=100, emb_dim=32, n_layers=2, n_heads=4,
                              max_position_embeddings=64, use_cache=False)),
    _Row("XLNetModel", _options(vocab_size=100, d_model=32, n_layer=2, n_head=4, d_inner=64,
                                use_mems_eval=False)),
    _Row("CanineModel", _BODY | _options(downsampling_rate=4, local_transformer_stride=4)),
    _Row("FunnelModel", _options(vocab_size=100, block_sizes=[1, 1], d_model=32, n_head=4,
                                 d_head=8, d_inner=64, num_decoder_layers=1)),
    _Row("LongformerModel", _BODY | _options(attention_window=4, pad_token_id=1)),
    _Row("BigBirdModel", _BODY | _options(attention_type="original_full")),
    _Row("YosoModel", _BODY | _options(use_expectation=True)),
    _Row("DPRQuestionEncoder", _BODY, config="DPRConfig"),
)  # fmt: skip
_GPT = _options(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, use_cache=False)
_MOE = _DECODER | _options(num_experts=4, num_local_experts=4, num_experts_per_tok=2,
                           moe_intermediate_size=32)  # fmt: skip
_DECODERS = (
    _Row("GPT2Model", _GPT),
    _Row("GPT2LMHeadModel", _GPT),
    _Row("OpenAIGPTModel", _options(vocab_size=100, n_embd=32, n_layer=2, n_head=4,
                                    n_positions=64)),
    _Row("GPTNeoModel", _options(
        vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64, window_size=8,
        use_cache=False)),
    _Row("GPTNeoXModel", _BODY | _options(use_cache=False)),
    _Row("GPTJModel", _GPT | _options(rotary_dim=4)),
    _Row("CodeGenModel", _GPT | _options(rotary_dim=4, n_ctx=64)),
    _Row("BloomModel", _options(vocab_size=100, hidden_size=32, n_layer=2, n_head=4,
                                use_cache=False)),
    _Row("OPTModel", _BODY | _options(ffn_dim=64, word_embed_proj_dim=32, use_cache=False)),
    _Row("LlamaModel", _DECODER),
    _Row("LlamaForCausalLM", _DECODER),
    _Row("MistralModel", _DECODER | _options(sliding_window=8)),
    _Row("Qwen2Model", _DECODER),
    _Row("Qwen3Model", _DECODER),
    _Row("GemmaModel", _DECODER),
    _Row("Gemma2Model", _DECODER | _options(sliding_window=8)),
    _Row("Gemma3TextModel", _DECODER | _options(sliding_window=8), config="Gemma3TextConfig"),
    _Row("PhiModel", _DECODER),
    _Row("Phi3Model", _DECODER),
    _Row("FalconModel", _BODY | _SPECIAL | _options(use_cache=False)),
    _Row("MptModel", _options(vocab_size=100, d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
                              use_cache=False)),
    _Row("StableLmModel", _DECODER),
    _Row("Starcoder2Model", _DECODER),
    _Row("CohereModel", _DECODER),
    _Row("OlmoModel", _DECODER),
    _Row("Olmo2Model", _DECODER),
    _Row("GraniteModel", _DECODER),
    _Row("GlmModel", _DECODER),
    _Row("HeliumModel", _DECODER),
    _Row("SmolLM3Model", _DECODER),
    _Row("Exaone4Model", _DECODER),
    _Row("BioGptModel", _DECODER),
    _Row("XGLMModel", _options(vocab_size=100, d_model=32, ffn_dim=64, num_layers=2,
                               attention_heads=4, max_position_embeddings=64, use_cache=False)),
    _Row("CTRLModel", _options(vocab_size=100, n_embd=32, n_layer=2, n_head=4, dff=64,
                               n_positions=64, use_cache=False)),
    _Row("MixtralModel", _MOE),
    _Row("Qwen2MoeModel", _MOE | _options(shared_expert_intermediate_size=32)),
    _Row("MambaModel", _options(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4,
                                use_cache=False), partial(text, mask=False)),
    _Row("NanoChatModel", _DECODER),
)  # fmt: skip
_PAIRS = (
    _Row("T5Model", _T5, both),
    _Row("T5ForConditionalGeneration", _T5, both),
    _Row("T5EncoderModel", _T5),
    _Row("MT5Model", _T5, both),
    _Row("UMT5Model", _T5, both),
    _Row("LongT5Model", _T5 | _options(local_radius=4), both),
    _Row("BartModel", _SEQ2SEQ, both),
    _Row("MBartModel", _SEQ2SEQ, both),
    _Row("PegasusModel", _SEQ2SEQ, both),
    _Row("BlenderbotSmallModel", _SEQ2SEQ, both),
    _Row("MarianModel", _SEQ2SEQ | _options(decoder_vocab_size=100, decoder_start_token_id=0),
         both),
    _Row("M2M100Model", _SEQ2SEQ, both),
    _Row("PLBartModel", _SEQ2SEQ, both),
    _Row("ProphetNetModel", _options(
        vocab_size=100, hidden_size=32, encoder_ffn_dim=64, num_encoder_layers=1,
        num_encoder_attention_heads=4, decoder_ffn_dim=64, num_decoder_layers=1,
        num_decoder_attention_heads=4, max_position_embeddings=64, use_cache=False), both),
)  # fmt: skip
_SWIN = _options(image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
                window_size=4)  # fmt: skip
_STAGES = _options(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 32, 32])
_VISION = (
    _Row("ViTModel", _IMAGE, pixels),
    _Row("ViTForImageClassification", _IMAGE, pixels),
    _Row("DeiTModel", _IMAGE, pixels),
    _Row("BeitModel", _IMAGE | _options(use_relative_position_bias=True), pixels),
    _Row("Data2VecVisionModel", _IMAGE | _options(use_relative_position_bias=True), pixels),
    _Row("Dinov2Model", _IMAGE, pixels),
    _Row("DINOv3ViTModel", _IMAGE, pixels),
    _Row("IJepaModel", _IMAGE, pixels),
    _Row("ViTMSNModel", _IMAGE, pixels),
    _Row("YolosModel", _IMAGE | _options(image_size=[32, 32], num_detection_tokens=5), pixels),
    _Row("SwinModel", _SWIN, partial(pixels, 64)),
    _Row("Swinv2Model", _SWIN, partial(pixels, 64)),
    _Row("Swin2SRModel", _options(image_size=32, patch_size=1, embed_dim=16, depths=[2],
                                  num_heads=[2], window_size=8), pixels),
    _Row("ConvNextModel", _STAGES, partial(pixels, 64)),
    _Row("ConvNextV2Model", _STAGES, partial(pixels, 64)),
    _Row("ResNetForImageClassification", _STAGES | _options(embedding_size=16),
         partial(pixels, 64)),
    _Row("RegNetModel", _STAGES | _options(embedding_size=16, groups_width=8),
         partial(pixels, 64)),
    _Row("SegformerForSemanticSegmentation", _STAGES | _options(
        num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=32), partial(pixels, 64)),
    _Row("MobileViTModel", _options(image_size=64, hidden_sizes=[16, 24, 32],
                                    neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 40]),
         partial(pixels, 64)),
    _Row("MobileViTV2Model", _options(image_size=64, width_multiplier=0.5), partial(pixels, 64)),
    _Row("MobileNetV1Model", _options(depth_multiplier=0.25), partial(pixels, 64)),
    _Row("MobileNetV2Model", _options(depth_multiplier=0.35), partial(pixels, 64)),
    _Row("EfficientNetModel", _options(width_coefficient=0.5, depth_coefficient=0.5,
                                       hidden_dim=640),
         partial(pixels, 64)),
    _Row("PoolFormerModel", _STAGES, partial(pixels, 64)),
    _Row("PvtModel", _options(image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 32, 32],
                              num_attention_heads=[1, 2, 2, 2]), partial(pixels, 64)),
    _Row("PvtV2Model", _options(image_size=64, depths=[1, 1, 1, 1],
                                hidden_sizes=[16, 32, 32, 32], num_attention_heads=[1, 2, 2, 2]),
         partial(pixels, 64)),
    _Row("LevitModel", _options(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
        key_dim=[8, 8, 8]), partial(pixels, 64)),
    _Row("BitModel", _options(
        embedding_size=16, hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], num_groups=4),
        partial(pixels, 64)),
    _Row("FocalNetModel", _options(
        image_size=64, embed_dim=16, depths=[1, 1], hidden_sizes=[16, 32], focal_levels=[1, 1],
        focal_windows=[3, 3]), partial(pixels, 64)),
    _Row("GLPNForDepthEstimation", _STAGES | _options(num_attention_heads=[1, 2, 2, 2]),
         partial(pixels, 64)),
    _Row("DPTForDepthEstimation", _IMAGE | _options(
        num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 16, 16], fusion_hidden_size=16, is_hybrid=False), pixels),
    _Row("SuperPointForKeypointDetection", _options(), partial(pixels, 64),
         config="SuperPointConfig"),
    _Row("CLIPVisionModel", _IMAGE, pixels, config="CLIPVisionConfig"),
    _Row("SiglipVisionModel", _IMAGE, pixels, config="SiglipVisionConfig"),
    _Row("ViTMAEForPreTraining", _IMAGE | _options(
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32),
        # the noise that shuffles patches is drawn inside of the model unless it is given
        lambda: pixels() | {"noise": floats(2, 16)}),
    _Row("TimesformerModel", _IMAGE | _options(num_frames=2),
         lambda: {"pixel_values": floats(2, 2, 3, 32, 32)}),
    _Row("VideoMAEModel", _IMAGE | _options(num_frames=2, tubelet_size=2),
         lambda: {"pixel_values": floats(2, 2, 3, 32, 32)}),
    _Row("VivitModel", _IMAGE | _options(num_frames=2, tubelet_size=[2, 8, 8]),
         lambda: {"pixel_values": floats(2, 2, 3, 32, 32)}),
)  # fmt: skip
_TOWERS = _options(text_config=_BODY | _SPECIAL, vision_config=_IMAGE, projection_dim=16)
_OTHERS = (
    _Row("CLIPModel", _TOWERS, pixels_and_text),
    _Row("CLIPTextModel", _BODY | _SPECIAL, config="CLIPTextConfig"),
    _Row("SiglipModel", _options(text_config=_BODY, vision_config=_IMAGE), pixels_and_text),
    _Row("ViltModel", _BODY | _IMAGE | _options(vocab_size=100), pixels_and_text),
    _Row("WhisperModel", _SEQ2SEQ | _options(
        num_mel_bins=16, max_source_positions=30, max_target_positions=32,
        decoder_start_token_id=1),
        lambda: mel() | {"decoder_input_ids": tokens(2, 7)}),
    _Row("Wav2Vec2Model", _SPEECH, sound),
    _Row("Wav2Vec2ForCTC", _SPEECH, sound),
    _Row("HubertModel", _SPEECH, sound),
    _Row("WavLMModel", _SPEECH, sound),
    _Row("Data2VecAudioModel", _SPEECH | _options(conv_pos_kernel_size=3,
                                                  num_conv_pos_embeddings=2), sound),
    _Row("UniSpeechSatModel", _SPEECH, sound),
    _Row("SEWModel", _SPEECH | _options(squeeze_factor=2), sound),
    _Row("ASTModel", _IMAGE | _options(max_length=32, num_mel_bins=16),
         lambda: {"input_values": floats(2, 32, 16)}),
    _Row("EncodecModel", _options(
        num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=16, upsampling_ratios=[4, 2],
        target_bandwidths=[24.0]), lambda: {"input_values": floats(2, 1, 640)}),
    _Row("PatchTSTModel", _options(
        num_input_channels=2, context_length=32, patch_length=8, patch_stride=8, d_model=16,
        num_attention_heads=2, ffn_dim=32, num_hidden_layers=2),
        lambda: {"past_values": floats(2, 32, 2)}),
    _Row("PatchTSMixerModel", _options(context_length=32, patch_length=8, num_input_channels=2,
                                       patch_stride=8, d_model=8, num_layers=2),
         lambda: {"past_values": floats(2, 32, 2)}),
    _Row("PerceiverModel", _options(d_model=32, d_latents=32, num_latents=8,
                                    num_self_attends_per_block=1, num_self_attention_heads=4,
                                    num_cross_attention_heads=4),
         lambda: {"inputs": floats(2, 20, 32)}),
)  # fmt: skip


_RARE = (
    *(
        _Row(name, _DECODER)
        for name in [
            "Cohere2Model",
            "NemotronModel",
            "PersimmonModel",
            "DiffLlamaModel",
            "Olmo3Model",
            "Glm4Model",
            "ArceeModel",
            "ApertusModel",
            "SeedOssModel",
            "Ernie4_5Model",
            "HunYuanDenseV1Model",
            "BitNetModel",
            "CwmModel",
            "VaultGemmaModel",
            "MinistralModel",
            "Ministral3Model",
            "ModernBertDecoderModel",
            "DogeModel",
            "Jais2Model",
        ]
    ),
    _Row("GPTBigCodeModel", _GPT),
    _Row("GPTNeoXJapaneseModel", _BODY | _options(use_cache=False)),
    _Row("GptOssModel", _MOE),
    _Row("Qwen3MoeModel", _MOE),
    _Row("OlmoeModel", _MOE),
    _Row("GraniteMoeModel", _MOE),
    _Row(
        "RecurrentGemmaModel",
        _DECODER
        | _options(attention_window_size=8, lru_width=32, block_types=["recurrent", "attention"]),
    ),
    _Row(
        "FalconMambaModel",
        _options(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False
        ),
        partial(text, mask=False),
    ),
    _Row(
        "Mamba2Model",
        _options(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            head_dim=8,
            num_heads=8,
            n_groups=1,
            use_cache=False,
            chunk_size=4,
        ),
        partial(text, mask=False),
    ),
    _Row(
        "RwkvModel",
        _options(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, context_length=64, use_cache=False
        ),
        partial(text, mask=False),
    ),
    _Row("Lfm2Model", _DECODER | _options(layer_types=["conv", "full_attention"])),
    _Row("BertGenerationEncoder", _BODY, config="BertGenerationConfig"),
    _Row("RobertaPreLayerNormModel", _BODY | _options(pad_token_id=1)),
    _Row("XLMRobertaXLModel", _BODY | _options(pad_token_id=1)),
    _Row(
        "XmodModel", _BODY | _options(pad_token_id=1, languages=["en_XX"], default_language="en_XX")
    ),
    _Row("Data2VecTextModel", _BODY | _options(pad_token_id=1)),
    _Row(
        "FlaubertModel",
        _options(
            vocab_size=100,
            emb_dim=32,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=64,
            use_cache=False,
        ),
    ),
    _Row("SplinterModel", _BODY),
    _Row(
        "MarkupLMModel",
        _BODY
        | _options(
            pad_token_id=1,
            max_xpath_tag_unit_embeddings=16,
            max_xpath_subs_unit_embeddings=16,
            tag_pad_id=5,
            subs_pad_id=5,
            xpath_unit_hidden_size=8,
            max_depth=4,
        ),
    ),
    _Row("TapasModel", _BODY),
    _Row("LukeModel", _BODY | _options(entity_vocab_size=20, entity_emb_size=16, pad_token_id=1)),
    _Row("MraModel", _BODY),
    _Row("RoCBertModel", _BODY | _options(enable_pronunciation=False, enable_shape=False)),
    _Row("VisualBertModel", _BODY),
    _Row("GteModel", _BODY),
    _Row("JinaEmbeddingsV3Model", _BODY | _options(pad_token_id=1)),
    _Row("BlenderbotModel", _SEQ2SEQ, both),
    _Row("BigBirdPegasusModel", _SEQ2SEQ | _options(attention_type="original_full"), both),
    _Row(
        "LEDModel",
        _SEQ2SEQ
        | _options(
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64,
            attention_window=4,
        ),
        both,
    ),
    _Row("PegasusXModel", _SEQ2SEQ | _options(num_global_tokens=4, block_size=8), both),
    _Row(
        "FSMTModel",
        _SEQ2SEQ | _options(langs=["en", "de"], src_vocab_size=100, tgt_vocab_size=100),
        both,
    ),
    _Row("T5GemmaModel", _options(encoder=_DECODER, decoder=_DECODER), both),
    _Row(
        "Speech2TextModel",
        _SEQ2SEQ
        | _options(
            input_feat_per_channel=16,
            conv_channels=16,
            max_source_positions=64,
            max_target_positions=64,
        ),
        lambda: frames() | {"decoder_input_ids": tokens(2, 7)},
    ),
    _Row(
        "MoonshineModel",
        _DECODER
        | _options(
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=4,
            decoder_num_attention_heads=4,
        ),
        lambda: sound() | {"decoder_input_ids": tokens(2, 7)},
    ),
    _Row("Dinov2WithRegistersModel", _IMAGE, pixels),
    _Row("DINOv3ConvNextModel", _STAGES, partial(pixels, 64)),
    _Row(
        "HieraModel",
        _options(
            image_size=[64, 64],
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            patch_size=[7, 7],
            patch_stride=[4, 4],
            patch_padding=[3, 3],
            query_stride=[2, 2],
            masked_unit_size=[8, 8],
        ),
        partial(pixels, 64),
    ),
    _Row(
        "SwiftFormerModel",
        _options(depths=[1, 1, 1, 1], embed_dims=[16, 16, 32, 32]),
        partial(pixels, 64),
    ),
    _Row("DonutSwinModel", _SWIN, partial(pixels, 64)),
    _Row("MaskFormerSwinModel", _SWIN, partial(pixels, 64)),
    _Row("Aimv2VisionModel", _IMAGE, pixels, config="Aimv2VisionConfig"),
    _Row("VitDetModel", _IMAGE, pixels),
    _Row("ViTMAEModel", _IMAGE, pixels),
    _Row(
        "SamVisionModel",
        _options(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            mlp_dim=64,
            output_channels=16,
            window_size=4,
            global_attn_indexes=[1],
        ),
        partial(pixels, 64),
        config="SamVisionConfig",
    ),
    _Row("TextNetModel", _options(), partial(pixels, 64)),
    _Row("HGNetV2Backbone", _options(), partial(pixels, 64), config="HGNetV2Config"),
    _Row(
        "DetrForObjectDetection",
        _options(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_queries=5,
        ),
        partial(pixels, 64),
        config="DetrConfig",
    ),
    _Row(
        "RTDetrModel",
        _options(num_queries=20, decoder_layers=1, encoder_layers=1),
        partial(pixels, 64),
    ),
    _Row("MaskFormerModel", _options(), partial(pixels, 64)),
    _Row(
        "BlipModel",
        _options(text_config=_BODY | _SPECIAL, vision_config=_IMAGE, projection_dim=16),
        pixels_and_text,
    ),
    _Row("CLIPSegModel", _TOWERS, pixels_and_text),
    _Row(
        "AltCLIPModel",
        _options(
            text_config=_BODY | _SPECIAL | _options(project_dim=16),
            vision_config=_IMAGE,
            projection_dim=16,
        ),
        pixels_and_text,
    ),
    _Row("ChineseCLIPModel", _TOWERS, pixels_and_text),
    _Row("OwlViTVisionModel", _IMAGE, pixels, config="OwlViTVisionConfig"),
    _Row(
        "GroupViTModel",
        _options(
            text_config=_BODY | _SPECIAL,
            vision_config=_options(
                hidden_size=32,
                image_size=32,
                patch_size=8,
                depths=[1, 1, 1],
                num_group_tokens=[4, 2, 0],
                num_output_groups=[4, 2, 0],
                num_attention_heads=4,
                intermediate_size=64,
            ),
            projection_dim=16,
            projection_intermediate_dim=16,
        ),
        pixels_and_text,
    ),
    _Row("GitModel", _BODY | _options(vision_config=_IMAGE), pixels_and_text),
    _Row("UniSpeechModel", _SPEECH, sound),
    _Row("Wav2Vec2ConformerModel", _SPEECH, sound),
    _Row(
        "Wav2Vec2BertModel",
        _BODY
        | _options(
            feature_projection_input_dim=16,
            add_adapter=False,
            layerdrop=0.0,
            apply_spec_augment=False,
        ),
        frames,
    ),
    _Row("SEWDModel", _SPEECH | _options(squeeze_factor=2), sound),
    _Row(
        "DecisionTransformerModel",
        _options(state_dim=4, act_dim=2, hidden_size=32, n_layer=1, n_head=4, max_ep_len=32),
        lambda: {
            "states": floats(2, 6, 4),
            "actions": floats(2, 6, 2),
            "rewards": floats(2, 6, 1),
            "returns_to_go": floats(2, 6, 1),
            "timesteps": torch.arange(6)[None].repeat(2, 1),
            "attention_mask": torch.ones(2, 6),
        },
    ),
    _Row("ViTForMaskedImageModeling", _IMAGE, pixels, config="ViTConfig"),
    _Row("BertForTokenClassification", _BODY, config="BertConfig"),
    _Row(
        "RobertaForSequenceClassification", _BODY | _options(pad_token_id=1), config="RobertaConfig"
    ),
    _Row("GPT2ForSequenceClassification", _GPT | _options(pad_token_id=0), config="GPT2Config"),
    _Row("Qwen2ForCausalLM", _DECODER, config="Qwen2Config"),
    _Row("GemmaForCausalLM", _DECODER, config="GemmaConfig"),
    _Row(
        "MobileViTForSemanticSegmentation",
        _options(
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 40],
            aspp_out_channels=16,
        ),
        partial(pixels, 64),
        config="MobileViTConfig",
    ),
    _Row("BeitForImageClassification", _IMAGE, pixels, config="BeitConfig"),
    _Row("UperNetForSemanticSegmentation", _options(), partial(pixels, 64), config="UperNetConfig"),
)


def _model(row: _Row) -> Built:
    transformers = package("transformers")
    made = getattr(transformers, row.name)
    config = getattr(transformers, row.config) if row.config else made.config_class
    torch.manual_seed(0)
    return made(config(**row.options)), row.inputs()


def entries() -> list[Entry]:
    """Every model of this package."""
    rows = _ENCODERS + _DECODERS + _PAIRS + _VISION + _OTHERS + _RARE
    return [Entry(row.name, "transformers", partial(_model, row)) for row in rows]
