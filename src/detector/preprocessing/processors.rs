//! The image processors of transformers: the defaults of fields that a file leaves out, and what each does beyond its
//! fields.
//!
//! From the processors of transformers 4.57 and 5.24. Where the two differ there is no default here, so that a file must
//! state what its model was made with. A processor that is not listed is refused, since its class may do anything.

use super::IMAGENET;

/// Means and standard deviations.
type Statistics = ([f32; 3], [f32; 3]);

const HALF: Statistics = ([0.5; 3], [0.5; 3]);
/// Those of the images on which CLIP was trained.
const CLIP: Statistics = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);

const BILINEAR: Option<u64> = Some(2);
const BICUBIC: Option<u64> = Some(3);
/// Releases of transformers differ, or the processor is not named: the file must state it.
const STATED: Option<u64> = None;

/// The default of `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum DefaultSize {
    /// Both edges.
    Square(u32),
    /// The shorter edge.
    Shortest(u32),
    /// The file must state it.
    Stated,
}

/// What a processor does beyond its fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Quirk {
    /// Nothing.
    None,
    /// Below 384 pixels it resizes to `edge / crop_pct` and crops to `edge`. From 384 pixels on it resizes both edges.
    ConvNext,
    /// The shorter edge becomes `edge * 256 / 224`.
    Levit,
    /// The edge is divided by `crop_pct`, and a square means the shorter edge.
    PoolFormer,
    /// It may map bytes to -1 to 1 (`rescale_offset`), and may divide by the standard deviation twice (`include_top`).
    EfficientNet,
    /// It never normalises, and may put blue first (`do_flip_channel_order`).
    MobileVit,
}

/// One class of image processors.
#[derive(Debug)]
pub(super) struct Processor {
    /// The class's name without `ImageProcessor`, `ImageProcessorFast` or `FeatureExtractor`.
    pub(super) name: &'static str,
    pub(super) size: DefaultSize,
    /// Whether a bare number as `size` means both edges, and not the shorter one. `None`: it is not known.
    pub(super) square: Option<bool>,
    /// The default of `do_center_crop`. `None`: the file must state it.
    pub(super) crops: Option<bool>,
    /// The default of `crop_size`.
    pub(super) crop: Option<u32>,
    /// The default of `resample`, as PIL's code.
    pub(super) resample: Option<u64>,
    /// The defaults of `image_mean` and `image_std`.
    pub(super) statistics: Option<Statistics>,
    pub(super) quirk: Quirk,
}

/// For a file that names no processor: it has to state everything.
pub(super) static UNNAMED: Processor = Processor {
    name: "",
    size: DefaultSize::Stated,
    square: None,
    crops: None,
    crop: None,
    resample: STATED,
    statistics: None,
    quirk: Quirk::None,
};

const fn squashing(name: &'static str, edge: u32, resample: Option<u64>, statistics: Statistics) -> Processor {
    Processor {
        name,
        size: DefaultSize::Square(edge),
        square: Some(true),
        crops: Some(false),
        crop: None,
        resample,
        statistics: Some(statistics),
        quirk: Quirk::None,
    }
}

const fn cropping(name: &'static str, edge: u32, resample: Option<u64>, statistics: Statistics) -> Processor {
    Processor {
        size: DefaultSize::Shortest(edge),
        square: Some(false),
        crops: Some(true),
        crop: Some(224),
        ..squashing(name, edge, resample, statistics)
    }
}

static PROCESSORS: [Processor; 17] = [
    // Also of Swin, SwiftFormer, Dinat, I-JEPA and MSN.
    squashing("ViT", 224, BILINEAR, HALF),
    // It rescales before it resizes, which saves half a level of rounding.
    squashing("DINOv3ViT", 224, BILINEAR, IMAGENET),
    squashing("Pvt", 224, STATED, IMAGENET),
    squashing("Segformer", 512, BILINEAR, IMAGENET),
    Processor { square: Some(false), ..squashing("Siglip", 224, BICUBIC, HALF) },
    Processor { size: DefaultSize::Stated, crops: None, crop: Some(224), ..squashing("Beit", 224, BICUBIC, HALF) },
    Processor { crops: Some(true), crop: Some(224), ..squashing("DeiT", 256, BICUBIC, HALF) },
    Processor { crop: Some(289), quirk: Quirk::EfficientNet, ..squashing("EfficientNet", 346, STATED, HALF) },
    cropping("CLIP", 224, BICUBIC, CLIP),
    // Also of DINOv2, Hiera and FocalNet.
    cropping("Bit", 224, BICUBIC, CLIP),
    cropping("ViTHybrid", 224, BICUBIC, CLIP),
    cropping("MobileNetV1", 256, BILINEAR, HALF),
    cropping("MobileNetV2", 256, BILINEAR, HALF),
    Processor { quirk: Quirk::Levit, ..cropping("Levit", 224, BICUBIC, IMAGENET) },
    Processor { quirk: Quirk::PoolFormer, ..cropping("PoolFormer", 224, BICUBIC, IMAGENET) },
    Processor { crop: Some(256), quirk: Quirk::MobileVit, ..cropping("MobileViT", 224, STATED, HALF) },
    // Also of ResNet, RegNet and CvT.
    Processor { crops: Some(false), crop: None, quirk: Quirk::ConvNext, ..cropping("ConvNext", 384, STATED, HALF) },
];

/// Finds a processor by the name of its class: its slow or fast form, or its older name as a feature extractor.
pub(super) fn find(class: &str) -> Option<&'static Processor> {
    let name = ["ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"]
        .iter()
        .find_map(|suffix| class.strip_suffix(suffix))?;
    PROCESSORS.iter().find(|processor| processor.name == name)
}

/// The names of all processors, for a message.
pub(super) fn known() -> String {
    PROCESSORS.iter().map(|processor| processor.name).collect::<Vec<_>>().join(", ")
}
