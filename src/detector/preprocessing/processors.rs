//! What each image processor of transformers does where its file is silent, and what it does that no field tells.
//!
//! Read off the processors of transformers 4.57 and 5.24. Where the two differ there is no default here, so that a file
//! must say what its model was made with. A processor that is not listed is refused: its class may do anything.

use super::IMAGENET;

/// Means and deviations.
type Statistics = ([f32; 3], [f32; 3]);

const HALF: Statistics = ([0.5; 3], [0.5; 3]);
/// Those of the images that CLIP was trained on.
const CLIP: Statistics = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);

const BILINEAR: Option<u64> = Some(2);
const BICUBIC: Option<u64> = Some(3);
/// Releases of transformers disagree, or the processor is not known: the file must say it.
const STATED: Option<u64> = None;

/// A default of `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Size {
    /// Both edges.
    Square(u32),
    /// The shorter edge.
    Shortest(u32),
    /// The file must say it.
    Stated,
}

/// How a processor goes beyond its `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Habit {
    /// It does not.
    None,
    /// Below 384 pixels it resizes to `edge / crop_pct` and crops to `edge`; from there on it squashes.
    ConvNext,
    /// The shorter edge becomes `edge * 256 / 224`.
    Levit,
    /// The edge is divided by `crop_pct`, and a square means the shorter edge.
    PoolFormer,
    /// Bytes may become -1 to 1, and are divided by the deviation a second time (`rescale_offset`, `include_top`).
    EfficientNet,
    /// It never normalises, and may put blue first (`do_flip_channel_order`).
    MobileVit,
}

/// One class of image processors.
#[derive(Debug)]
pub(super) struct Processor {
    /// The class's name without `ImageProcessor`, `ImageProcessorFast` or `FeatureExtractor`.
    pub(super) name: &'static str,
    pub(super) size: Size,
    /// A bare number as `size` stands for both edges, and not for the shorter one. `None`: nobody knows.
    pub(super) square: Option<bool>,
    /// `do_center_crop`, where it is absent. `None`: the file must say it.
    pub(super) crops: Option<bool>,
    /// `crop_size`.
    pub(super) crop: Option<u32>,
    /// `resample`, as PIL's code.
    pub(super) resample: Option<u64>,
    /// `image_mean` and `image_std`.
    pub(super) statistics: Option<Statistics>,
    pub(super) habit: Habit,
}

/// A file that names no processor has to say everything.
pub(super) static UNNAMED: Processor = Processor {
    name: "",
    size: Size::Stated,
    square: None,
    crops: None,
    crop: None,
    resample: STATED,
    statistics: None,
    habit: Habit::None,
};

const fn squashing(name: &'static str, edge: u32, resample: Option<u64>, statistics: Statistics) -> Processor {
    Processor {
        name,
        size: Size::Square(edge),
        square: Some(true),
        crops: Some(false),
        crop: None,
        resample,
        statistics: Some(statistics),
        habit: Habit::None,
    }
}

const fn cropping(name: &'static str, edge: u32, resample: Option<u64>, statistics: Statistics) -> Processor {
    Processor {
        size: Size::Shortest(edge),
        square: Some(false),
        crops: Some(true),
        crop: Some(224),
        ..squashing(name, edge, resample, statistics)
    }
}

static PROCESSORS: [Processor; 17] = [
    // Also of Swin, SwiftFormer, Dinat, I-JEPA and MSN.
    squashing("ViT", 224, BILINEAR, HALF),
    // It rescales before it resizes, which spares it half a level of rounding.
    squashing("DINOv3ViT", 224, BILINEAR, IMAGENET),
    squashing("Pvt", 224, STATED, IMAGENET),
    squashing("Segformer", 512, BILINEAR, IMAGENET),
    Processor { square: Some(false), ..squashing("Siglip", 224, BICUBIC, HALF) },
    Processor { size: Size::Stated, crops: None, crop: Some(224), ..squashing("Beit", 224, BICUBIC, HALF) },
    Processor { crops: Some(true), crop: Some(224), ..squashing("DeiT", 256, BICUBIC, HALF) },
    Processor { crop: Some(289), habit: Habit::EfficientNet, ..squashing("EfficientNet", 346, STATED, HALF) },
    cropping("CLIP", 224, BICUBIC, CLIP),
    // Also of DINOv2, Hiera and FocalNet.
    cropping("Bit", 224, BICUBIC, CLIP),
    cropping("ViTHybrid", 224, BICUBIC, CLIP),
    cropping("MobileNetV1", 256, BILINEAR, HALF),
    cropping("MobileNetV2", 256, BILINEAR, HALF),
    Processor { habit: Habit::Levit, ..cropping("Levit", 224, BICUBIC, IMAGENET) },
    Processor { habit: Habit::PoolFormer, ..cropping("PoolFormer", 224, BICUBIC, IMAGENET) },
    Processor { crop: Some(256), habit: Habit::MobileVit, ..cropping("MobileViT", 224, STATED, HALF) },
    // Also of ResNet, RegNet and CvT.
    Processor { crops: Some(false), crop: None, habit: Habit::ConvNext, ..cropping("ConvNext", 384, STATED, HALF) },
];

/// Finds a processor by its class: its slow or fast form, or the name it had as a feature extractor.
pub(super) fn find(class: &str) -> Option<&'static Processor> {
    let name = ["ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"]
        .iter()
        .find_map(|suffix| class.strip_suffix(suffix))?;
    PROCESSORS.iter().find(|processor| processor.name == name)
}

/// The classes that are known, for a message.
pub(super) fn known() -> String {
    PROCESSORS.iter().map(|processor| processor.name).collect::<Vec<_>>().join(", ")
}
