"""The networks of the zoo: one table from names to what builds them, on random weights, with an example of their input.

`torchvision` without a prefix, `timm/`, `hf/` (transformers), `yolo/` (ultralytics, by its files), `smp/`
(segmentation-models-pytorch), `monai/` and `diffusers/`. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

register_fake = torch.library.register_fake


def _skip_torchvision(name: Any, *args: Any, **kwargs: Any) -> Any:
    """torchvision's wheel registers kernels that a torch without CUDA does not have."""
    skipped = isinstance(name, str) and name.startswith("torchvision::")
    return (lambda function: function) if skipped else register_fake(name, *args, **kwargs)


torch.library.register_fake = _skip_torchvision
import timm  # noqa: E402
from torchvision import models  # noqa: E402

torch.library.register_fake = register_fake

Built = tuple[nn.Module, tuple[Tensor, ...]]

TIMM = """
    botnet26t_256 cait_xxs24_224 coatnet_nano_rw_224 convmixer_768_32 convnext_atto crossvit_9_240 cspdarknet53 davit_tiny
    deit_tiny_patch16_224 dla34 dpn68 eca_nfnet_l0 edgenext_xx_small efficientformer_l1 efficientnet_b0 ese_vovnet19b_slim
    fastvit_t8 focalnet_tiny_srf ghostnet_050 gmlp_ti16_224 hrnet_w18_small levit_128s maxvit_rmlp_pico_rw_256 mixer_s32_224
    mobilevit_xxs nest_tiny pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvit_m1 res2net50_26w_4s resmlp_12_224
    resnest14d resnetv2_50x1_bit rexnet_100 selecsls42 swinv2_tiny_window8_256 twins_pcpvt_small xcit_nano_12_p16_224
""".split()
MORE_TIMM = """
    beit_base_patch16_224 cait_xxs36_224 coat_tiny coatnet_rmlp_nano_rw_224 convit_tiny convnextv2_atto cs3darknet_s dla46_c
    edgenext_x_small efficientformerv2_s0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0
    focalnet_tiny_lrf gcvit_xxtiny ghostnetv2_100 hgnetv2_b0 hiera_tiny_224 hrnet_w18_small_v2 inception_next_atto
    legacy_seresnet18 levit_conv_128s mambaout_femto maxxvit_rmlp_nano_rw_256 mixnet_s mobilenetv4_conv_small
    mobilevitv2_050 mvitv2_tiny nf_regnet_b0 poolformerv2_s12 pvt_v2_b1 regnety_002 sebotnet33ts_256 sequencer2d_s
    skresnet18 starnet_s1 tiny_vit_5m_224 tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny vit_relpos_small_patch16_224
    volo_d1_224 xcit_tiny_12_p16_224
""".split()
SEGMENTATION = ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18"]
TORCHVISION = [*models.list_models(module=models), *SEGMENTATION, *VIDEO]

# Image sides where 64 pixels are refused.
SIDES = {"inception_v3": 96, "maxvit_t": 224, **{name: 224 for name in TORCHVISION if name.startswith("vit_")}}
FULL_SIDES = {"inception_v3": 299}

# What Hugging Face's classes are told: small, with 8 heads and two layers.
TEXT = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 256}
TEXT = {**TEXT, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 4}
CAUSAL = {**TEXT, "num_key_value_heads": 4, "head_dim": 16}
OLD = {"vocab_size": 200, "hidden_size": 64, "n_layer": 2, "n_head": 8, "pad_token_id": 0}
IMAGE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 256, "num_labels": 4}
PAIR = {"vocab_size": 200, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 8}
PAIR = {**PAIR, "decoder_attention_heads": 8, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "pad_token_id": 0}
DETR = {name: size for name, size in PAIR.items() if name not in ("vocab_size", "pad_token_id")}
STAGES = {"depths": [1, 1, 1, 1], "num_labels": 4}
HF: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", TEXT),
    "roberta": ("RobertaForSequenceClassification", TEXT),
    "distilbert": ("DistilBertForSequenceClassification", {**PAIR, "dim": 64, "n_layers": 2, "n_heads": 8, "hidden_dim": 256}),
    "albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 32}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "modernbert": ("ModernBertForSequenceClassification", TEXT),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 200, "n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}),
    "gpt-neox": ("GPTNeoXForCausalLM", TEXT),
    "opt": ("OPTForCausalLM", {**TEXT, "ffn_dim": 256, "word_embed_proj_dim": 64}),
    "bloom": ("BloomForCausalLM", OLD),
    "falcon": ("FalconForCausalLM", {**TEXT, "multi_query": False}),
    "llama": ("LlamaForCausalLM", CAUSAL),
    "mistral": ("MistralForCausalLM", CAUSAL),
    "qwen2": ("Qwen2ForCausalLM", CAUSAL),
    "qwen3": ("Qwen3ForCausalLM", CAUSAL),
    "gemma2": ("Gemma2ForCausalLM", CAUSAL),
    "gemma3": ("Gemma3ForCausalLM", CAUSAL),
    "phi": ("PhiForCausalLM", {**TEXT, "num_key_value_heads": 4}),
    "phi3": ("Phi3ForCausalLM", {**TEXT, "num_key_value_heads": 4}),
    "mixtral": ("MixtralForCausalLM", {**CAUSAL, "num_local_experts": 4}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": 200, "d_model": 64, "d_kv": 8, "d_ff": 256, "num_layers": 2}),
    "bart": ("BartForConditionalGeneration", {**PAIR, "max_position_embeddings": 64}),
    "whisper": ("WhisperForConditionalGeneration", {**PAIR, "num_mel_bins": 16, "max_source_positions": 32}),
    "vit": ("ViTForImageClassification", {**IMAGE, "image_size": 64, "patch_size": 8}),
    "deit": ("DeiTForImageClassification", {**IMAGE, "image_size": 64, "patch_size": 8}),
    "swin": (
        "SwinForImageClassification",
        {**STAGES, "embed_dim": 32, "num_heads": [4, 8, 8, 8], "image_size": 128, "window_size": 4},
    ),
    "segformer": ("SegformerForSemanticSegmentation", {**STAGES, "num_attention_heads": [1, 2, 4, 8]}),
    "convnext": ("ConvNextForImageClassification", {**STAGES, "hidden_sizes": [16, 32, 64, 128]}),
    "detr": ("DetrForObjectDetection", {**DETR, "num_queries": 10, "num_labels": 4}),
    "clip": ("CLIPModel", {"projection_dim": 32}),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", {**TEXT, "conv_dim": [32] * 7}),
}  # fmt: skip
MASKED = ("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert", "gpt2", "opt", "llama", "mistral")

YOLO = """
    yolov3-tiny yolov5n yolov5n-p6 yolov8n yolov8n-seg yolov8n-cls yolov8n-pose yolov8n-obb yolov9t yolov10n yolo11n
    yolo11n-seg yolo11n-cls yolo12n yolov8n-ghost rtdetr-resnet50
""".split()

SMP = "Unet UnetPlusPlus FPN PSPNet DeepLabV3 DeepLabV3Plus Linknet MAnet PAN UPerNet Segformer".split()

MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2, "norm": "batch"}, (1, 32, 32, 32)),
    "BasicUNet": ({"features": (16, 16, 32, 64, 128, 16)}, (1, 32, 32, 32)),
    "AttentionUnet": ({"channels": (16, 32, 64), "strides": (2, 2)}, (1, 32, 32, 32)),
    "SegResNet": ({"init_filters": 16}, (1, 32, 32, 32)),
    "VNet": ({}, (1, 32, 32, 32)),
    "DynUNet": (
        {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [16, 32, 64]},
        (1, 32, 32, 32),
    ),
    "DenseNet121": ({}, (1, 32, 32, 32)),
    "SEResNet50": ({}, (1, 32, 32, 32)),
    "AutoEncoder": ({"channels": (16, 32, 64), "strides": (2, 2, 2)}, (1, 32, 32, 32)),
    "ViT": (
        {"img_size": (32,) * 3, "patch_size": 8, "hidden_size": 64, "mlp_dim": 256, "num_layers": 2, "num_heads": 8,
         "classification": True},
        (1, 32, 32, 32),
    ),
    "UNETR": ({"img_size": (32,) * 3, "hidden_size": 96, "mlp_dim": 256, "num_heads": 8, "feature_size": 16}, (1, 32, 32, 32)),
    "SwinUNETR": ({"feature_size": 24}, (1, 64, 64, 64)),
}  # fmt: skip

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
TILES = {"num_attention_heads": 8, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 16}
DIFFUSERS: dict[str, tuple[dict[str, Any], Callable[[], tuple[Tensor, ...]], tuple[str, ...]]] = {
    "UNet2DModel": (
        {**SMALL, "down_block_types": DOWN, "up_block_types": UP, "attention_head_dim": 8, "sample_size": 32},
        lambda: (torch.randn(1, 3, 32, 32), torch.tensor([10])),
        ("sample", "timestep"),
    ),
    "UNet2DConditionModel": (
        {**SMALL, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 8},
        lambda: (torch.randn(1, 4, 32, 32), torch.tensor([10]), torch.randn(1, 8, 32)),
        ("sample", "timestep", "encoder_hidden_states"),
    ),
    "AutoencoderKL": (
        {**SMALL, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        lambda: (torch.randn(1, 3, 32, 32),),
        ("sample",),
    ),
    "AutoencoderTiny": ({}, lambda: (torch.randn(1, 3, 32, 32),), ("sample",)),
    "VQModel": ({"block_out_channels": (32,), "norm_num_groups": 8}, lambda: (torch.randn(1, 3, 32, 32),), ("sample",)),
    "DiTTransformer2DModel": (
        {**TILES, "out_channels": 8,
         "patch_size": 2, "norm_num_groups": 8, "num_embeds_ada_norm": 10},
        lambda: (torch.randn(1, 4, 16, 16), torch.tensor([10]), torch.tensor([3])),
        ("hidden_states", "timestep", "class_labels"),
    ),
    "PixArtTransformer2DModel": (
        {**TILES, "out_channels": 8,
         "cross_attention_dim": 64, "norm_num_groups": 8, "caption_channels": 32, "use_additional_conditions": False},
        lambda: (torch.randn(1, 4, 16, 16), torch.randn(1, 8, 32), torch.tensor([10])),
        ("hidden_states", "encoder_hidden_states", "timestep"),
    ),
    "SD3Transformer2DModel": (
        {**TILES, "out_channels": 4,
         "joint_attention_dim": 32, "caption_projection_dim": 64, "pooled_projection_dim": 32, "pos_embed_max_size": 16},
        lambda: (torch.randn(1, 4, 16, 16), torch.randn(1, 8, 32), torch.randn(1, 32), torch.tensor([10])),
        ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
    ),
}  # fmt: skip

LIBRARIES: dict[str, list[str]] = {
    "torchvision": TORCHVISION,
    "timm": [f"timm/{name}" for name in TIMM],
    "more timm": [f"timm/{name}" for name in MORE_TIMM],
    "Hugging Face": [f"hf/{name}" for name in HF],
    "ultralytics": [f"yolo/{name}" for name in YOLO],
    "segmentation-models-pytorch": [f"smp/{name}" for name in SMP],
    "MONAI": [f"monai/{name}" for name in MONAI],
    "diffusers": [f"diffusers/{name}" for name in DIFFUSERS],
}
NAMES = [name for names in LIBRARIES.values() for name in names]


PACKAGES = {
    "hf": "transformers",
    "yolo": "ultralytics.nn.tasks",
    "smp": "segmentation_models_pytorch",
    "monai": "monai.networks.nets",
    "diffusers": "diffusers",
}


def load(name: str) -> Any:
    """The package that a network comes from."""
    library = name.rpartition("/")[0]
    return importlib.import_module(PACKAGES[library]) if library in PACKAGES else None


class ByKeyword(nn.Module):
    """A network whose inputs are given in order, under the names of some of its arguments."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(**dict(zip(self.names, inputs, strict=True)))


def build(name: str, full_size: bool = False) -> Built:
    """A network in eval mode with non-trivial norms, and an example of its input: full size, or small where it may be."""
    torch.manual_seed(0)
    library, _, plain = name.rpartition("/")
    if library:
        network, inputs = BUILDERS[library](plain, full_size)
    else:
        network, inputs = _torchvision(plain, full_size)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(getattr(module, "weight", None), Tensor) and "norm" in type(module).__name__.lower():
                nn.init.uniform_(module.weight, 0.5, 1.5)
                if isinstance(getattr(module, "bias", None), Tensor):
                    nn.init.normal_(module.bias, std=0.3)
            if isinstance(getattr(module, "running_mean", None), Tensor):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # classifiers that start as zeros would hide every difference
    return network.eval(), inputs


def _torchvision(name: str, full_size: bool) -> Built:
    side = FULL_SIDES.get(name, 224) if full_size else SIDES.get(name, 64)
    if name in SEGMENTATION:
        network = models.get_model(name, weights=None, weights_backbone=None)
    else:
        network = models.get_model(name, weights=None)
    return network, (torch.randn((1, 3, 8, 32, 32) if name in VIDEO else (1, 3, side, side)),)


def _timm(name: str, full_size: bool) -> Built:
    network = timm.create_model(name)
    config = network.pretrained_cfg
    side = config["input_size"][-1] if full_size or config.get("fixed_input_size") else 96
    return network, (torch.randn(1, 3, side, side),)


def _hugging_face(name: str, full_size: bool) -> Built:
    kind, told = HF[name]
    transformers = load("hf/")
    known: Any = getattr(transformers, kind)
    if name == "clip":
        text, vision = {**TEXT, "projection_dim": 32}, {**IMAGE, "image_size": 64, "patch_size": 8, "projection_dim": 32}
        told = {**told, "text_config": text, "vision_config": vision}
    if name == "detr":
        backbone = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
        told = {
            **told,
            "use_timm_backbone": False,
            "backbone_config": transformers.ResNetConfig(**backbone, out_features=["stage4"]),
        }
        told["use_pretrained_backbone"] = False
    if name == "t5":
        told = {**told, "num_heads": 8}
    network = known(known.config_class(**told))
    ids, mask = torch.randint(3, 200, (1, 16)), torch.ones(1, 16, dtype=torch.long)
    mask[:, 13:] = 0
    side = 128 if name == "swin" else 64
    if name in ("vit", "deit", "swin", "segformer", "convnext", "detr"):
        return network, (torch.randn(1, 3, side, side),)
    if name == "whisper":
        return ByKeyword(network, ("input_features", "decoder_input_ids")), (torch.randn(1, 16, 64), ids[:, :8])
    if name == "wav2vec2":
        return network, (torch.randn(1, 8000),)
    if name in ("t5", "bart"):
        return ByKeyword(network, ("input_ids", "decoder_input_ids")), (ids, ids[:, :8])
    if name == "clip":
        return ByKeyword(network, ("input_ids", "pixel_values")), (ids, torch.randn(1, 3, 64, 64))
    if name in MASKED:
        return ByKeyword(network, ("input_ids", "attention_mask")), (ids, mask)
    return network, (ids,)


def _yolo(name: str, full_size: bool) -> Built:
    tasks = load("yolo/")
    kinds = {"seg": tasks.SegmentationModel, "cls": tasks.ClassificationModel, "pose": tasks.PoseModel, "obb": tasks.OBBModel}
    kind: Any = kinds.get(name.rpartition("-")[2], tasks.DetectionModel)
    kind = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else kind
    side = 640 if full_size and not name.endswith("cls") else 224 if full_size else 128
    return kind(f"{name}.yaml", verbose=False), (torch.randn(1, 3, side, side),)


def _smp(name: str, full_size: bool) -> Built:
    kind: Any = getattr(load("smp/"), name)
    encoder = {"Segformer": "mit_b0", "FPN": "mobilenet_v2", "MAnet": "efficientnet-b0"}.get(name, "resnet18")
    side = 224 if full_size else 128 if name == "PAN" else 64
    return kind(encoder, encoder_weights=None, classes=4), (torch.randn(1, 3, side, side),)


def _monai(name: str, full_size: bool) -> Built:
    told, shape = MONAI[name]
    kind: Any = getattr(load("monai/"), name)
    widths = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    if name in ("SEResNet50",):
        widths = {"spatial_dims": 3, "in_channels": 1, "num_classes": 3}
    if name == "ViT":
        widths = {"in_channels": 1, "num_classes": 3}
    return kind(**widths, **told), (torch.randn(1, *shape),)


def _diffusers(name: str, full_size: bool) -> Built:
    told, inputs, names = DIFFUSERS[name]
    kind: Any = getattr(load("diffusers/"), name)
    return ByKeyword(kind(**told), names), inputs()


BUILDERS: dict[str, Callable[[str, bool], Built]] = {
    "timm": _timm,
    "hf": _hugging_face,
    "yolo": _yolo,
    "smp": _smp,
    "monai": _monai,
    "diffusers": _diffusers,
}
