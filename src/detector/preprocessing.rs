//! `preprocessor_config.json` (Hugging Face) and timm's `pretrained_cfg`, resolved into one [`Geometry`] and one
//! [`Normalisation`]. Everything that a field can mean is decided here. A field that is not supported is refused.

mod hugging_face;
mod processors;
mod timm;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, JsonObject};

/// The means and deviations of ImageNet, which most published weights were trained with.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// The filter of a resize, by PIL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResampleFilter {
    /// Nearest neighbour (PIL code 0).
    Nearest,
    /// Lanczos, three lobes (1).
    Lanczos,
    /// Triangle (2).
    Bilinear,
    /// Catmull-Rom cubic, a = -0.5 (3).
    Bicubic,
    /// Box (4).
    Box,
    /// Hamming (5).
    Hamming,
}

/// The first step: to what size the upright image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Resize {
    /// The image keeps its size.
    None,
    /// Both edges, without keeping the aspect ratio.
    Exact {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// The shorter edge. The longer one keeps the aspect ratio, rounded down as torchvision does.
    ShortestEdge(u32),
    /// The shorter edge or, where the longer one would then exceed its limit, the longer one, as transformers does.
    ShortestEdgeWithin {
        /// Pixels of the shorter edge.
        edge: u32,
        /// The largest number of pixels of the longer edge.
        longest: u32,
    },
    /// The smallest size that keeps the aspect ratio and covers the box, as timm does for a crop that is not square.
    Cover {
        /// The smallest number of pixels across.
        width: u32,
        /// The smallest number of pixels down.
        height: u32,
    },
    /// The largest size that keeps the aspect ratio and fits the box. The rest of the crop is padded with one colour.
    Fit {
        /// The largest number of pixels across.
        width: u32,
        /// The largest number of pixels down.
        height: u32,
        /// The colour around the image, RGB.
        fill: [u8; 3],
    },
}

/// How the offset of a centre crop is rounded when the difference is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CropRounding {
    /// `(edge - crop) // 2`, as transformers does.
    Down,
    /// `round((edge - crop) / 2)`, halves to even, as torchvision does.
    HalfToEven,
}

/// From an upright image to `[height, width, 3] u8`. Detectors with equal geometries share one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    /// The first step.
    pub resize: Resize,
    /// The filter of the first step.
    pub filter: ResampleFilter,
    /// The width after the second step, a centre crop or padding.
    pub width: u32,
    /// The height after the second step.
    pub height: u32,
    /// Rounding of the crop's offset.
    pub rounding: CropRounding,
}

/// The order of a model's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red first, as for nearly all models.
    Rgb,
    /// Blue first, as for MobileViT.
    Bgr,
}

/// From a byte to a float, for each channel: `(byte * scale - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Usually 1/255.
    pub scale: f32,
    /// After `scale`: red, green, blue, also where the model takes blue first.
    pub mean: [f32; 3],
    /// As `mean`.
    pub std: [f32; 3],
    /// The order of the planes that the model takes.
    pub channels: Channels,
}

/// Resolves a package's preprocessing. A Hugging Face preprocessor is used before timm's fields in `config.json`.
///
/// `fixed` is the height and width that the model's input has, where its file fixes them. `order` is the order of the
/// channels that the package states for its model, whatever its processor does.
pub(super) fn resolve(
    config: &JsonObject,
    files: ProcessorFiles<'_>,
    order: Option<Channels>,
    fixed: Option<(u32, u32)>,
) -> Result<(Geometry, Normalisation), FieldError> {
    let (geometry, normalisation) = fields_of(config, files, fixed)?;
    match order {
        Some(Channels::Rgb) if normalisation.channels == Channels::Bgr => Err(FieldError::new(
            "config.json",
            "pixwarden.pixel_order",
            "it is \"RGB\", but `do_flip_channel_order` of the processor puts blue first; remove one of the two",
        )),
        Some(channels) => Ok((geometry, Normalisation { channels, ..normalisation })),
        None => Ok((geometry, normalisation)),
    }
}

/// The files in which transformers keeps an image processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessorFiles<'a> {
    /// `preprocessor_config.json`
    pub(super) preprocessor: Option<&'a JsonObject>,
    /// `processor_config.json`, which transformers 5 writes, with the image processor in its field `image_processor`.
    pub(super) processor: Option<&'a JsonObject>,
}

impl<'a> ProcessorFiles<'a> {
    /// The image processors that are stated, at most one in each file. An older `processor_config.json` has none.
    fn image_processors(self) -> Result<Vec<JsonFields<'a>>, FieldError> {
        const NESTED: &str = "image_processor";
        let beside = self.preprocessor.map(|json| JsonFields { json, file: "preprocessor_config.json", within: "" });
        let nested = match self.processor.and_then(|json| json.get(NESTED)) {
            None | Some(Value::Null) => None,
            Some(Value::Object(json)) => {
                Some(JsonFields { json, file: "processor_config.json", within: "image_processor." })
            }
            Some(other) => {
                let what = format!("{other} is not an object with the fields of an image processor");
                return Err(FieldError::new("processor_config.json", NESTED, what));
            }
        };
        Ok(beside.into_iter().chain(nested).collect())
    }
}

/// Resolves the fields of the processor or of timm. Two files must state the same.
fn fields_of(
    config: &JsonObject,
    files: ProcessorFiles<'_>,
    fixed: Option<(u32, u32)>,
) -> Result<(Geometry, Normalisation), FieldError> {
    let of_processor = |fields: JsonFields<'_>| {
        // transformers' wrapper around timm has timm's fields.
        match fields.json.get("pretrained_cfg").and_then(Value::as_object) {
            Some(json) => timm::resolve(JsonFields { json, ..fields }, fixed),
            None => hugging_face::resolve(fields),
        }
    };
    let processors = files.image_processors()?;
    if let Some((first, rest)) = processors.split_first() {
        let resolved = of_processor(*first)?;
        for other in rest {
            if of_processor(*other)? != resolved {
                let what = format!(
                    "it contradicts {}, and programs differ in which they read; remove one of the two files",
                    first.file
                );
                return Err(FieldError::new(other.file, "image_processor", what));
            }
        }
        return Ok(resolved);
    }
    // timm nests its fields. Old exports do not.
    let nested = config.get("pretrained_cfg").and_then(Value::as_object);
    match nested.or_else(|| config.contains_key("input_size").then_some(config)) {
        Some(json) => timm::resolve(JsonFields { json, file: "config.json", within: "" }, fixed),
        None => Err(FieldError::new(
            "config.json",
            "pretrained_cfg",
            "there is no preprocessing; add preprocessor_config.json or processor_config.json (Hugging Face), or `pretrained_cfg` (timm)",
        )),
    }
}

/// The fields of a JSON object, read by type. `null` counts as absent, except for switches.
#[derive(Clone, Copy)]
struct JsonFields<'a> {
    json: &'a JsonObject,
    file: &'static str,
    /// What precedes a field's name where the fields are inside another one.
    within: &'static str,
}

impl<'a> JsonFields<'a> {
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    fn refuse(&self, field: impl Into<std::borrow::Cow<'static, str>>, what: impl Into<String>) -> FieldError {
        let field = field.into();
        let field = if self.within.is_empty() { field } else { format!("{}{field}", self.within).into() };
        FieldError::new(self.file, field, what)
    }

    fn text(&self, field: &'static str) -> Result<Option<&'a str>, FieldError> {
        let text =
            |value: &'a Value| value.as_str().ok_or_else(|| self.refuse(field, format!("{value} is not a string")));
        self.get(field).map(text).transpose()
    }

    /// A switch that is `null` is off, as in transformers, where it is a value that is not true.
    fn switch(&self, field: &'static str) -> Result<Option<bool>, FieldError> {
        match self.json.get(field) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(false)),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => Err(self.refuse(field, format!("{other} is not true or false"))),
        }
    }

    /// The part of the resized edge that the crop keeps, above 0 and up to 1.
    fn crop_pct(&self, field: &'static str) -> Result<Option<f64>, FieldError> {
        let pct = |value: &Value| {
            let pct = value.as_f64().filter(|pct| *pct > 0.0 && *pct <= 1.0);
            pct.ok_or_else(|| self.refuse(field, format!("{value} is not above 0 and up to 1")))
        };
        self.get(field).map(pct).transpose()
    }

    /// Three numbers, or one number for all three channels.
    fn channels(&self, field: &'static str) -> Result<Option<[f32; 3]>, FieldError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(list) => list.iter().map(Value::as_f64).collect(),
            single => single.as_f64().map(|n| vec![n; 3]),
        };
        #[expect(clippy::cast_possible_truncation, reason = "models compute in float32")]
        match numbers.as_deref() {
            Some([r, g, b]) => Ok(Some([*r as f32, *g as f32, *b as f32])),
            _ => Err(self.refuse(field, format!("{value} is not one number for each of red, green, blue"))),
        }
    }
}

fn checked(n: Normalisation, fields: JsonFields<'_>, field: &'static str) -> Result<Normalisation, FieldError> {
    if n.std.iter().all(|s| s.is_finite() && *s > 0.0) && n.mean.iter().all(|m| m.is_finite()) {
        return Ok(n);
    }
    Err(fields.refuse(field, "every standard deviation must be above 0, and every mean finite"))
}

/// An edge in pixels.
fn edge_pixels(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=8192).contains(n))
}

/// An edge divided by the part of it that the crop keeps, rounded down as both libraries do.
fn enlarged(edge: u32, crop_pct: f64) -> u32 {
    floor(f64::from(edge) / crop_pct)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an edge is above 0, and a cast saturates")]
fn floor(edge: f64) -> u32 {
    edge.floor() as u32
}
