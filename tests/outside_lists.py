"""What a practitioner calls the head and the last block of networks of timm and transformers, written by hand: names of
modules, or how names of parameters begin. The last block stands with what follows it, the head among it."""

TIMM = {
    "resnet18": ("fc", "layer4.1 fc"),
    "resnet50": ("fc", "layer4.2 fc"),
    "resnetv2_50": ("head.fc", "stages.3.blocks.2 norm head.fc"),
    "res2net50_26w_4s": ("fc", "layer4.2 fc"),
    "resnest14d": ("fc", "layer4.0 fc"),
    "legacy_seresnet18": ("last_linear", "layer4.1 last_linear"),
    "densenet121": ("classifier", "features.denseblock4.denselayer16 features.norm5 classifier"),
    "regnety_002": ("head.fc", "s4.b7 head.fc"),
    "inception_v3": ("fc", "Mixed_7c fc"),
    "inception_v4": ("last_linear", "features.21 last_linear"),
    "dpn68": ("classifier", "features.conv5_3 features.conv5_bn_ac classifier"),
    "mobilenetv2_100": ("classifier", "blocks.6.0 conv_head bn2 classifier"),
    "efficientnet_b0": ("classifier", "blocks.6.0 conv_head bn2 classifier"),
    "mnasnet_100": ("classifier", "blocks.6.0 conv_head bn2 classifier"),
    "lcnet_050": ("classifier", "blocks.5.1 conv_head classifier"),
    "repvgg_a0": ("head.fc", "stages.3.0 head.fc"),
    "convnext_atto": ("head.fc", "stages.3.blocks.1 head.norm head.fc"),
    "convnextv2_atto": ("head.fc", "stages.3.blocks.1 head.norm head.fc"),
    "vit_tiny_patch16_224": ("head", "blocks.11 norm head"),
    "deit_tiny_distilled_patch16_224": ("head head_dist", "blocks.11 norm head head_dist"),
    "eva02_tiny_patch14_224": ("head", "blocks.11 fc_norm head"),
    "swin_tiny_patch4_window7_224": ("head.fc", "layers.3.blocks.1 norm head.fc"),
    "swinv2_tiny_window8_256": ("head.fc", "layers.3.blocks.1 norm head.fc"),
    "mixer_s32_224": ("head", "blocks.7 norm head"),
    "resmlp_12_224": ("head", "blocks.11 norm head"),
    "gmlp_s16_224": ("head", "blocks.29 norm head"),
    "convmixer_768_32": ("head", "blocks.31 head"),
    "cait_xxs24_224": ("head", "blocks_token_only.1 norm head"),
    "xcit_nano_12_p16_224": ("head", "cls_attn_blocks.1 norm head"),
    "pit_ti_224": ("head", "transformers.2.blocks.3 norm head"),
    "poolformer_s12": ("head.fc", "stages.3.blocks.1 head.norm head.fc"),
    "crossvit_tiny_240": ("head.0 head.1", "blocks.2 norm head"),
    "pvt_v2_b0": ("head", "stages.3.blocks.1 stages.3.norm head"),
    "twins_svt_small": ("head", "blocks.3.3 norm head"),
    "volo_d1_224": ("head aux_head", "post_network.1 norm head aux_head"),
    "inception_next_atto": ("head.fc2", "stages.3.blocks.1 head.fc1 head.norm head.fc2"),
    "fastvit_t8": ("head.fc", "stages.3.blocks.1 final_conv head.fc"),
    "edgenext_xx_small": ("head.fc", "stages.3.blocks.1 head.norm head.fc"),
}
"""Networks of timm by name: head and last block."""

TRANSFORMERS = {
    "ViT": ("classifier", "vit.layers.1 vit.layernorm classifier"),
    "DeiT": ("classifier", "deit.layers.1 deit.layernorm classifier"),
    "DeiTWithTeacher": (
        "cls_classifier distillation_classifier",
        "deit.layers.1 deit.layernorm cls_classifier distillation_classifier",
    ),
    "Beit": ("classifier", "beit.layers.1 beit.pooler classifier"),
    "Data2VecVision": ("classifier", "data2vec_vision.encoder.layer.1 data2vec_vision.pooler classifier"),
    "Swin": ("classifier", "swin.encoder.layers.1.blocks.1 swin.layernorm classifier"),
    "ConvNext": ("classifier", "convnext.encoder.stages.1.layers.1 convnext.layernorm classifier"),
    "ConvNextV2": ("classifier", "convnextv2.encoder.stages.1.layers.1 convnextv2.layernorm classifier"),
    "ResNet": ("classifier.1", "resnet.encoder.stages.1.layers.1 classifier.1"),
    "RegNet": ("classifier.1", "regnet.encoder.stages.1.layers.1 classifier.1"),
    "Bit": ("classifier.1", "bit.encoder.stages.1.layers.1 bit.norm classifier.1"),
    "PoolFormer": ("classifier", "poolformer.encoder.block.3.1 norm classifier"),
    "PvtV2": ("classifier", "pvt_v2.encoder.layers.3.blocks.1 pvt_v2.encoder.layers.3.layer_norm classifier"),
    "Dinov2": ("classifier", "dinov2.encoder.layer.1 dinov2.layernorm classifier"),
    "ViTMSN": ("classifier", "vit.layers.1 vit.layernorm classifier"),
    "FocalNet": ("classifier", "focalnet.encoder.stages.1.layers.1 focalnet.layernorm classifier"),
    "Levit": (
        "classifier.linear",
        "levit.encoder.stages.2.layers.2 levit.encoder.stages.2.layers.3 classifier",
    ),
    "SwiftFormer": ("head dist_head", "swiftformer.encoder.network.6.blocks.1 norm head dist_head"),
    "MobileNetV2": ("classifier", "mobilenet_v2.layer.15 mobilenet_v2.conv_1x1 classifier"),
    "Siglip": ("classifier", "vision_model.encoder.layers.1 vision_model.post_layernorm classifier"),
    "CLIP": ("classifier", "vision_model.encoder.layers.1 classifier"),
}
"""Image classifiers of transformers by what precedes ForImageClassification, two layers or blocks deep."""

DIFFERENT = {("Levit", "last_block")}
"""Where the rule takes something else. Levit: attention and MLP are two entries of one list, and the last one is taken
for a block."""
