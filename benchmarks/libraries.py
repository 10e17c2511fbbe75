"""Networks of libraries, as tables of data: torchvision's, timm's by family, and small ones of transformers.

`TORCHVISION`, `TIMM` and `TRANSFORMERS` are name -> `Entry`, a constructor and an example. Images are as small as
a network takes them, batches hold 2, networks tell 10 classes apart or fewer, weights are fresh, and nothing is
downloaded. A library is imported only where a network needs it.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Example = Any
"""A tensor, a tuple, a dict, or a list of such: what `dnat.trace` takes."""


class Entry(NamedTuple):
    """One network: how it is made, and an example for a seed."""

    make: Callable[[], nn.Module]
    example: Callable[[int], Example]


# Examples


def images(seed: int, size: int = 96, batch: int = 2) -> Tensor:
    """Images that are nothing special."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def of_size(size: int) -> Callable[[int], Tensor]:
    """Examples of another size."""
    return functools.partial(images, size=size)


def noise(seed: int, name: str, *shape: int) -> dict[str, Tensor]:
    """Images, sound or a spectrum, by the keyword of Hugging Face's networks."""
    return {name: torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))}


def tokens(seed: int) -> dict[str, Tensor]:
    """Token numbers by keyword, the second row padded."""
    ids = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tokens_alone(seed: int) -> dict[str, Tensor]:
    """Token numbers without a mask."""
    return {"input_ids": tokens(seed)["input_ids"]}


def two_texts(seed: int) -> dict[str, Tensor]:
    """A text for an encoder, and a shorter one for a decoder."""
    return tokens(seed) | {"decoder_input_ids": tokens(seed + 1000)["input_ids"][:, :7]}


def sound_and_text(seed: int) -> dict[str, Tensor]:
    """A spectrum for an encoder, and a text for a decoder."""
    return noise(seed, "input_features", 8, 40) | {"decoder_input_ids": tokens(seed)["input_ids"][:, :7]}


# How networks are made


class Configuration(NamedTuple):
    """A class of transformers that describes a network, and its options, which may be such descriptions, too."""

    kind: str
    options: Mapping[str, Any]


def from_torchvision(name: str, **options: Any) -> nn.Module:
    """A network of torchvision, with fresh weights."""
    import_torchvision()
    from torchvision.models import get_model

    return get_model(name, weights=None, **options)


def from_timm(name: str, **options: Any) -> nn.Module:
    """A network of timm, with fresh weights."""
    import_torchvision()
    import timm

    return timm.create_model(name, pretrained=False, **options)


def from_transformers(kind: str, configuration: Configuration) -> nn.Module:
    """A network of transformers, with fresh weights."""
    import_torchvision()
    import transformers

    def configured(value: Any) -> Any:
        if not isinstance(value, Configuration):
            return value
        options = {name: configured(option) for name, option in value.options.items()}
        return getattr(transformers, value.kind)(**options)

    return getattr(transformers, kind)(configured(configuration))


def import_torchvision() -> None:
    """Make torchvision, and with it timm and transformers, importable where its operators do not fit torch."""
    try:
        from dnat.networks import import_torchvision as imported
    except ImportError:
        return _import_without_dnat()
    imported()


def _import_without_dnat() -> None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _alive.append(library)
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pass


_alive: list[Any] = []


# torchvision

_CLASSIFICATION = """
    alexnet convnext_tiny convnext_small convnext_base convnext_large densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4
    efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
    mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
    regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
    regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
    regnet_y_128gf resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d
    resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vgg19 vgg19_bn wide_resnet50_2 wide_resnet101_2
"""
_SEGMENTATION = """
    deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101
    lraspp_mobilenet_v3_large
"""
_OF_ONE_SIZE = {"vit_b_16": 64, "vit_b_32": 64, "vit_l_16": 64, "vit_l_32": 64, "vit_h_14": 56}


def _torchvision(name: str, size: int = 64, **options: Any) -> Entry:
    return Entry(functools.partial(from_torchvision, name, num_classes=10, **options), of_size(size))


_ALL_OF_TORCHVISION = {
    **{name: _torchvision(name) for name in _CLASSIFICATION.split()},
    **{name: _torchvision(name, size, image_size=size) for name, size in _OF_ONE_SIZE.items()},
    "googlenet": _torchvision("googlenet", init_weights=False),
    # Its second classifier needs 299 pixels, and its windows fit 224.
    "inception_v3": _torchvision("inception_v3", 96, init_weights=False, aux_logits=False),
    "maxvit_t": _torchvision("maxvit_t", 224),
    **{name: _torchvision(name, weights_backbone=None) for name in _SEGMENTATION.split()},
}

TORCHVISION = {f"torchvision:{name}": entry for name, entry in _ALL_OF_TORCHVISION.items()}
"""All of torchvision's networks for classification and segmentation."""


# timm

_SIZED = """
    beit_base_patch16_224 beitv2_base_patch16_224 cait_xxs24_224 cait_xxs24_384 coat_lite_tiny coat_tiny
    convit_small convit_tiny deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 eca_botnext26ts_256
    efficientformerv2_s0 efficientformerv2_s1 eva02_tiny_patch14_224 gcvit_xtiny gcvit_xxtiny gmixer_12_224
    gmlp_ti16_224 hiera_small_abswin_256 hiera_tiny_224 levit_128s levit_conv_128s maxvit_pico_rw_256
    nest_tiny nest_tiny_jx pit_ti_224 pit_ti_distilled_224 swin_s3_tiny_224 swin_tiny_patch4_window7_224
    swinv2_cr_tiny_224 swinv2_cr_tiny_384 swinv2_tiny_window16_256 swinv2_tiny_window8_256 test_coatnet
    test_vit3 test_vit_relpos tnt_s_legacy_patch16_224 tnt_s_patch16_224 visformer_small visformer_tiny
    vit_srelpos_small_patch16_224 vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384 vitamin_base_224
    vitamin_small_224 volo_d1_224 volo_d1_384
"""
_OF_64_PIXELS = """
    convmixer_1024_20_ks9_p14 convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano cpubone_t0
    crossvit_9_240 crossvit_tiny_240 cs3darknet_focus_s csatv2 csatv2_21m cspnext_s cspnext_tiny darknet17
    davit_small davit_tiny densenet121 densenetblur121d dla46_c dla46x_c dla60x_c dpn48b dpn68
    edgenext_x_small edgenext_xx_small efficientnet_lite0 efficientvim_m1 efficientvim_m1_dist efficientvit_b0
    efficientvit_b1 efficientvit_m0 efficientvit_m1 ese_vovnet19b_slim_dw fasternet_t0 fasternet_t1
    fastvit_t12 fastvit_t8 focalnet_tiny_lrf focalnet_tiny_srf ghostnet_050 ghostnetv3_050 hardcorenas_a
    hardcorenas_b hgnetv2_b0 hgnetv2_b1 hieradet_small hrnet_w18_small hrnet_w18_small_v2 iformer_s iformer_t
    inception_next_atto inception_next_tiny lambda_resnet26t lcnet_035 lcnet_050 lcnetv2_base lcnetv2_small
    legacy_seresnet18 legacy_seresnext26_32x4d legacy_xception lowformer_b0 lowformer_b1 mambaout_femto
    mixnet_s mnasnet_small mobilenet_edgetpu_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv5_base
    mobileone_s1 mobilevit_xs mobilevit_xxs mobilevitv2_050 mvitv2_small mvitv2_tiny
    naflexvit_base_patch16_gap naflexvit_base_patch16_parfac_gap nasnetalarge nextvit_base nextvit_small
    nf_regnet_b0 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 pvt_v2_b1 qwen3_vit_88m rdnet_small
    rdnet_tiny regnetx_002 regnety_002 repghostnet_050 repghostnet_058 repvit_m0_9 repvit_m1 res2net50_14w_8s
    res2next50 resnest14d resnest26d resnet10t resnetv2_18 resnetv2_18d rexnet_100 rexnetr_100 sam2_hiera_tiny
    samvit_base_patch16 samvit_base_patch16_224 selecsls42 selecsls60 semnasnet_050 sequencer2d_m
    sequencer2d_s shvit_s1 shvit_s2 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050 starnet_s100
    swiftformer_s swiftformer_xs test_byobnet test_convnext test_convnext3 test_efficientnet test_mambaout
    test_nfnet test_resnet test_vit test_vit2 test_vit4 tiny_vit_11m_224 tiny_vit_5m_224 tinynet_e tresnet_m
    tresnet_v2_l twins_pcpvt_small twins_svt_small vgg11 vit_tiny_patch16_dinov3_qkvb vovnet39a xception41
    xception41p xcit_nano_12_p16_224 xcit_nano_12_p16_384 xcit_nano_12_p8_224 xcit_nano_12_p8_384
"""
_LARGER = {
    "gemma4_vit_167m_enc": 96,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
    "efficientformer_l1": 224,
    "efficientformer_l3": 224,
}


def _timm(name: str, size: int = 64, **options: Any) -> Entry:
    return Entry(functools.partial(from_timm, name, num_classes=10, **options), of_size(size))


_CHOSEN_OF_TIMM = {
    **{name: _timm(name) for name in _OF_64_PIXELS.split()},
    **{name: _timm(name, img_size=64) for name in _SIZED.split()},
    **{name: _timm(name, size) for name, size in _LARGER.items()},
}

TIMM = {f"timm:{name}": entry for name, entry in _CHOSEN_OF_TIMM.items()}
"""200 of timm's networks: the smallest ones of each of its files, but for one whose smallest has 400 M weights."""


# transformers

_CLASSES = {"num_labels": 5}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_VOCABULARY = {"vocab_size": 100, "max_position_embeddings": 32}
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_ENCODER = _LAYERS | {"intermediate_size": 48}
_TEXTS = _ENCODER | _VOCABULARY | _SPECIAL
_READER = _TEXTS | _CLASSES
_WRITER = _TEXTS | {"use_cache": False}
_GROUPED = _WRITER | {"num_key_value_heads": 2}
_GPT = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
_GPT2 = _GPT | {"n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}
_T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "use_cache": False}
_BOTH = {
    "d_model": 32,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
}
_TRANSLATOR = _BOTH | _VOCABULARY | _SPECIAL | {"use_cache": False, "decoder_start_token_id": 1}
_PATCHES = _ENCODER | _CLASSES | {"image_size": 64, "patch_size": 16}
_STAGES = _CLASSES | {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 2, 1]}
_WINDOWS = _CLASSES | {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_SOUND = _ENCODER | {
    "vocab_size": 20,
    "conv_dim": [8, 12, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    # Layers and parts of the sound that are left out at random, by other generators than torch's.
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def _backbone(kind: str, *stages: int) -> Configuration:
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
    return Configuration(kind, sizes | {"out_features": [f"stage{stage}" for stage in stages]})


def _detector(*stages: int) -> dict[str, Any]:
    options = {"num_queries": 5, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    return _BOTH | _CLASSES | options | {"backbone_config": _backbone("ResNetConfig", *stages)}


def _text(kind: str, configuration: str, options: Mapping[str, Any]) -> Entry:
    return Entry(functools.partial(from_transformers, kind, Configuration(configuration, options)), tokens)


def _vision(kind: str, configuration: str, options: Mapping[str, Any], size: int = 64) -> Entry:
    example = functools.partial(_images_of_transformers, size=size)
    return Entry(functools.partial(from_transformers, kind, Configuration(configuration, options)), example)


def _images_of_transformers(seed: int, size: int) -> dict[str, Tensor]:
    return noise(seed, "pixel_values", 3, size, size)


def _sound(seed: int) -> dict[str, Tensor]:
    return noise(seed, "input_values", 400)


def _spectrum(seed: int) -> dict[str, Tensor]:
    return noise(seed, "input_values", 64, 16)


_ALL_OF_TRANSFORMERS = {
    # Texts, word by word
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gptj": _text("GPTJForCausalLM", "GPTJConfig", _GPT2 | {"rotary_dim": 4}),
    "gpt_neo": _text(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _GPT
        | {"max_position_embeddings": 32, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": _text("GPTNeoXForCausalLM", "GPTNeoXConfig", _WRITER),
    "llama": _text("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "mistral": _text("MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 8}),
    "mixtral": _text("MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 4}),
    "qwen2": _text("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": _text("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 8}),
    "gemma2": _text("Gemma2ForCausalLM", "Gemma2Config", _GROUPED | {"head_dim": 8}),
    "phi": _text("PhiForCausalLM", "PhiConfig", _WRITER),
    "opt": _text("OPTForCausalLM", "OPTConfig", _WRITER | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": _text("BloomForCausalLM", "BloomConfig", _GPT | {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": _text("FalconForCausalLM", "FalconConfig", _GPT | _LAYERS),
    # Texts as a whole
    "bert": _text("BertForSequenceClassification", "BertConfig", _READER),
    "roberta": _text("RobertaForSequenceClassification", "RobertaConfig", _READER),
    "distilbert": _text(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _CLASSES | _VOCABULARY | {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    ),
    "albert": _text("AlbertForSequenceClassification", "AlbertConfig", _READER | {"embedding_size": 16}),
    "electra": _text("ElectraForSequenceClassification", "ElectraConfig", _READER | {"embedding_size": 16}),
    "deberta_v2": _text(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _READER | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
    "mpnet": _text("MPNetForSequenceClassification", "MPNetConfig", _READER),
    "modernbert": _text(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _READER | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "longformer": _text(
        "LongformerForSequenceClassification", "LongformerConfig", _READER | {"attention_window": 8}
    ),
    "xlnet": _text(
        "XLNetForSequenceClassification",
        "XLNetConfig",
        _CLASSES
        | {"vocab_size": 100, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "use_mems_eval": False},
    ),
    "fnet": _text("FNetForSequenceClassification", "FNetConfig", _READER)._replace(example=tokens_alone),
    "funnel": _text(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        _CLASSES
        | {"vocab_size": 100, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1, 1]},
    ),
    "clip_text": _text("CLIPTextModelWithProjection", "CLIPTextConfig", _TEXTS | {"projection_dim": 16}),
    # Texts from texts
    "t5_encoder": _text("T5EncoderModel", "T5Config", _T5 | {"num_layers": 3}),
    "t5": _text(
        "T5ForConditionalGeneration", "T5Config", _T5 | {"num_layers": 2, "decoder_start_token_id": 0}
    )._replace(example=two_texts),
    "bart": _text("BartForConditionalGeneration", "BartConfig", _TRANSLATOR)._replace(example=two_texts),
    "pegasus": _text("PegasusForConditionalGeneration", "PegasusConfig", _TRANSLATOR)._replace(example=two_texts),
    "marian": _text("MarianMTModel", "MarianConfig", _TRANSLATOR)._replace(example=two_texts),
    # Sound
    "whisper": _text(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _TRANSLATOR
        | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    )._replace(example=sound_and_text),
    "wav2vec2": _text("Wav2Vec2ForCTC", "Wav2Vec2Config", _SOUND)._replace(example=_sound),
    "hubert": _text("HubertForCTC", "HubertConfig", _SOUND)._replace(example=_sound),
    "ast": _text(
        "ASTForAudioClassification",
        "ASTConfig",
        _PATCHES
        | {"patch_size": 8, "max_length": 64, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
    )._replace(example=_spectrum),
    # Images
    "vit": _vision("ViTForImageClassification", "ViTConfig", _PATCHES | {"hidden_dropout_prob": 0.1}),
    "deit": _vision("DeiTForImageClassification", "DeiTConfig", _PATCHES),
    "beit": _vision("BeitForImageClassification", "BeitConfig", _PATCHES | {"use_relative_position_bias": True}),
    "dinov2": _vision(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        _LAYERS | _CLASSES | {"mlp_ratio": 2, "image_size": 56, "patch_size": 14},
        56,
    ),
    "swin": _vision("SwinForImageClassification", "SwinConfig", _WINDOWS),
    "swinv2": _vision("Swinv2ForImageClassification", "Swinv2Config", _WINDOWS),
    "convnext": _vision("ConvNextForImageClassification", "ConvNextConfig", _STAGES),
    "convnextv2": _vision("ConvNextV2ForImageClassification", "ConvNextV2Config", _STAGES),
    "resnet": _vision("ResNetForImageClassification", "ResNetConfig", _STAGES | {"embedding_size": 8}),
    "regnet": _vision(
        "RegNetForImageClassification", "RegNetConfig", _STAGES | {"embedding_size": 8, "groups_width": 8}
    ),
    "mobilenet_v1": _vision(
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        _CLASSES | {"image_size": 64, "depth_multiplier": 0.25},
    ),
    "mobilenet_v2": _vision(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        _CLASSES | {"image_size": 64, "depth_multiplier": 0.35},
    ),
    "efficientnet": _vision(
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        _CLASSES | {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    "mobilevit": _vision(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        _CLASSES
        | {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 40]},
    ),
    "segformer": _vision(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        _CLASSES
        | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 2, 4]}
        | {"decoder_hidden_size": 16},
    ),
    "upernet": _vision(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        _CLASSES
        | {"hidden_size": 16, "auxiliary_in_channels": 32, "auxiliary_channels": 8}
        | {
            "backbone_config": Configuration(
                "ConvNextConfig", _STAGES | {"out_features": [f"stage{stage}" for stage in (1, 2, 3, 4)]}
            )
        },
    ),
    "dpt": _vision(
        "DPTForSemanticSegmentation",
        "DPTConfig",
        _PATCHES
        | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]}
        | {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16},
    ),
    "poolformer": _vision("PoolFormerForImageClassification", "PoolFormerConfig", _STAGES),
    "levit": _vision(
        "LevitForImageClassification",
        "LevitConfig",
        _CLASSES
        | {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 4]}
        | {"depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
    "pvt_v2": _vision(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        _CLASSES
        | {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        | {"num_attention_heads": [1, 2, 2, 4]},
    ),
    "clip_vision": _vision("CLIPVisionModelWithProjection", "CLIPVisionConfig", _PATCHES | {"projection_dim": 16}),
    "siglip_vision": _vision("SiglipVisionModel", "SiglipVisionConfig", _PATCHES),
    # Boxes in images
    "detr": _vision("DetrForObjectDetection", "DetrConfig", _detector(4)),
    "conditional_detr": _vision("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", _detector(4)),
    "deformable_detr": _vision("DeformableDetrForObjectDetection", "DeformableDetrConfig", _detector(2, 3, 4)),
    "rt_detr": _vision(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        _BOTH
        | _CLASSES
        | {"num_queries": 5, "num_denoising": 0, "backbone_config": _backbone("RTDetrResNetConfig", 2, 3, 4)}
        | {"encoder_hidden_dim": 32, "encoder_in_channels": [24, 32, 40], "decoder_in_channels": [32, 32, 32]},
        96,
    ),
    "yolos": _vision(
        "YolosForObjectDetection", "YolosConfig", _PATCHES | {"image_size": [64, 64], "num_detection_tokens": 5}
    ),
}

TRANSFORMERS = {f"hf_{name}": entry for name, entry in _ALL_OF_TRANSFORMERS.items()}
"""Small networks of transformers, of every kind."""
