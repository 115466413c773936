"""Models of timm: the smallest of most families, with images as small as the family allows."""

from __future__ import annotations

from functools import partial

import torch

from tests.zoo.entry import Built, Entry, floats, package

# side of the image, 0 for the one the model is made for: names
_BY_SIDE: dict[int, str] = {
    64: (
        "convmixer_768_32 convnextv2_atto cs3darknet_s cspresnet50 darknet53 dla34 dm_nfnet_f0 "
        "dpn48b eca_nfnet_l0 edgenext_xx_small efficientvit_b0 ese_vovnet19b_dw fastvit_t8 "
        "fbnetc_100 focalnet_tiny_srf gcresnet33ts gernet_s ghostnet_050 hardcorenas_a "
        "hgnet_tiny hrnet_w18_small inception_next_tiny lcnet_050 mixnet_s mnasnet_small "
        "mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 nf_resnet26 "
        "poolformer_s12 pvt_v2_b0 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 "
        "res2net50_14w_8s resnest14d resnetv2_50 rexnet_100 selecsls42 seresnet18 shvit_s1 "
        "skresnet18 starnet_s1 swiftformer_xs tf_efficientnet_b0 tinynet_e tresnet_m vgg11 "
        "vovnet39a xception41 convformer_s18 caformer_s18 mobilenetv3_small_050 "
        "efficientnet_lite0 resnet18d semnasnet_075 spnasnet_100 legacy_seresnet18 csatv2 "
        "hgnetv2_b0 cpubone_nano cspnext_tiny densenet121 efficientvim_m1 fasternet_t0 "
        "iformer_t lcnetv2_small lowformer_b0 mambaout_femto mobilenetv5_base rdnet_tiny "
        "regnetx_002 regnety_002 legacy_xception lambda_resnet26t resnet50_gn resnext50_32x4d "
        "ecaresnet26t resnetrs50 resnetaa50 wide_resnet50_2 convnext_atto tf_efficientnetv2_b0 "
        "mobilenetv2_050 tf_mobilenetv3_small_100 fbnetv3_b efficientnet_es dla46x_c dpn68 "
        "hrnet_w18_ssld res2next50 xception71 regnetv_040"
    ),
    96: ("inception_v3 inception_v4 inception_resnet_v2 nextvit_small nasnetalarge pnasnet5large"),
    0: (
        "beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny coatnet_0_224 convit_tiny "
        "crossvit_tiny_240 davit_tiny deit_tiny_distilled_patch16_224 efficientformer_l1 "
        "efficientformerv2_s0 efficientvit_m0 eva02_tiny_patch14_224 gcvit_xxtiny "
        "hiera_tiny_224 levit_128s mixer_s32_224 mvitv2_tiny nest_tiny pit_ti_224 resmlp_12_224 "
        "visformer_tiny sequencer2d_s swinv2_cr_tiny_ns_224 swin_tiny_patch4_window7_224 "
        "tiny_vit_5m_224 tnt_s_patch16_224 twins_pcpvt_small vit_tiny_patch16_224 "
        "vit_relpos_small_patch16_224 volo_d1_224 xcit_nano_12_p16_224 maxvit_rmlp_pico_rw_256 "
        "gmixer_12_224 vit_small_patch16_rope_224 naflexvit_base_patch16_gap botnet26t_256 "
        "halonet26t deepseek_vit_412m gemma4_vit_167m qwen3_vit_88m sam2_hiera_tiny "
        "swinv2_tiny_window8_256 vit_tiny_r_s16_p8_224 samvit_base_patch16_224 "
        "vitamin_small_224 sebotnet33ts_256 maxvit_pico_rw_256 maxxvit_rmlp_nano_rw_256 "
        "coatnet_nano_rw_224 beitv2_base_patch16_224 deit3_small_patch16_224 "
        "vit_small_patch14_dinov2 vit_small_patch16_dinov3 vit_srelpos_small_patch16_224 "
        "convit_small crossvit_9_dagger_240 eva02_small_patch14_224 eva_giant_patch14_224 "
        "xcit_tiny_12_p8_224 visformer_small swin_s3_tiny_224 volo_d2_224 cait_xxs36_224 "
        "levit_conv_128s pvt_v2_b2_li gmlp_s16_224 convmixer_1024_20_ks9_p14 jx_nest_tiny "
        "twins_svt_small coat_tiny"
    ),
}


# what families of fixed size take to become small, the smallest first
_SMALL: tuple[dict[str, int], ...] = (
    {"img_size": 64, "depth": 2},
    {"img_size": 64},
    {"img_size": 112},
    {},
)


def _model(name: str, side: int) -> Built:
    timm = package("timm")
    if side:
        return timm.create_model(name, num_classes=10), floats(2, 3, side, side)
    for options in _SMALL:
        try:
            model = timm.create_model(name, num_classes=10, **options).eval()
            size = options.get("img_size") or model.default_cfg["input_size"][-1]
            model(floats(1, 3, size, size))
        except Exception:  # families refuse what they do not take in many ways
            continue
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=10, **options), floats(2, 3, size, size)
    msg = f"{name} runs at no size"
    raise ValueError(msg)


def entries() -> list[Entry]:
    """Every model of this package."""
    return [
        Entry(f"timm {name}", "timm", partial(_model, name, side))
        for side, names in _BY_SIDE.items()
        for name in names.split()
    ]
