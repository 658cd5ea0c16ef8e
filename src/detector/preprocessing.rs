//! What `preprocessor_config.json` (Hugging Face) and timm's `pretrained_cfg` say, resolved into one [`Geometry`] and
//! one [`Normalisation`]. Everything a field can mean is decided here; a field that is not understood is refused.

use serde_json::{Map, Value};

use super::FieldError;

type Object = Map<String, Value>;

/// The interpolation of a resize, by PIL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
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

/// The first step: what size the upright image is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resize {
    /// The image is used as it is.
    None,
    /// Both edges, whatever the aspect.
    Exact {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// The shorter edge; the longer keeps the aspect, rounded down as torchvision does.
    ShortestEdge(u32),
    /// The longer edge; the rest of the crop is padded with one colour.
    LongestEdge {
        /// Pixels of the longer edge.
        edge: u32,
        /// The colour around the image, RGB.
        fill: [u8; 3],
    },
}

/// How the offset of a centre crop is rounded when the difference is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CropRounding {
    /// `(edge - crop) // 2`, as transformers does.
    Down,
    /// `round((edge - crop) / 2)`, halves to even, as torchvision does.
    HalfToEven,
}

/// From an upright image to `[height, width, 3] u8`. Detectors with equal geometries share one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// The first step.
    pub resize: Resize,
    /// The filter of the first step.
    pub filter: Filter,
    /// The second step: a centre crop (or padding) to exactly this size.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// Rounding of the crop's offset.
    pub rounding: CropRounding,
}

/// From a byte to a float: `(byte * scale - mean) / std`, a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    /// Usually 1/255.
    pub scale: f32,
    /// In units after `scale`.
    pub mean: [f32; 3],
    /// In units after `scale`.
    pub std: [f32; 3],
}

/// Resolves a package's preprocessing. A Hugging Face preprocessor counts before timm's fields in `config.json`.
pub(super) fn resolve(config: &Object, preprocessor: Option<&Object>) -> Result<(Geometry, Normalisation), FieldError> {
    if let Some(preprocessor) = preprocessor.filter(|p| !p.contains_key("pretrained_cfg")) {
        return HuggingFace(preprocessor).resolve();
    }
    // timm nests its fields in `pretrained_cfg`, in config.json or in TimmWrapper's preprocessor; old exports are flat.
    let nested = preprocessor
        .and_then(|p| p.get("pretrained_cfg"))
        .or_else(|| config.get("pretrained_cfg"))
        .and_then(Value::as_object);
    match nested.or_else(|| config.contains_key("input_size").then_some(config)) {
        Some(fields) => Timm(fields).resolve(),
        None => Err(FieldError::new(
            "config.json",
            "pretrained_cfg",
            "no preprocessing found; give preprocessor_config.json (Hugging Face) or `pretrained_cfg` (timm)",
        )),
    }
}

struct Timm<'a>(&'a Object);

impl Timm<'_> {
    const FILE: &'static str = "config.json";

    fn resolve(&self) -> Result<(Geometry, Normalisation), FieldError> {
        let (height, width) = self.input_size()?;
        let filter = match self.text("interpolation")?.unwrap_or("bilinear") {
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "hamming" => Filter::Hamming,
            other => return Err(self.refuse("interpolation", format!("\"{other}\" is not supported"))),
        };
        let mean = channels(self.0.get("mean"), Self::FILE, "mean")?.unwrap_or([0.485, 0.456, 0.406]);
        let std = channels(self.0.get("std"), Self::FILE, "std")?.unwrap_or([0.229, 0.224, 0.225]);
        let crop_pct = match self.0.get("crop_pct").filter(|v| !v.is_null()) {
            None => 0.875,
            Some(value) => value
                .as_f64()
                .filter(|pct| *pct > 0.0 && *pct <= 1.0)
                .ok_or_else(|| self.refuse("crop_pct", format!("{value} is not in 0 to 1")))?,
        };
        let scaled = |edge: u32| floor_u32(f64::from(edge) / crop_pct);
        let resize = match self.text("crop_mode")?.unwrap_or("center") {
            "squash" => Resize::Exact { width: scaled(width), height: scaled(height) },
            "center" if width == height => Resize::ShortestEdge(scaled(height)),
            "border" if width == height => {
                let fill = mean.map(|m| clamp_u8((m * 255.0).round_ties_even()));
                Resize::LongestEdge { edge: scaled(height), fill }
            }
            mode @ ("center" | "border") => {
                return Err(self.refuse("crop_mode", format!("\"{mode}\" needs a square `input_size`")));
            }
            other => return Err(self.refuse("crop_mode", format!("\"{other}\" is none of center, squash, border"))),
        };
        let geometry = Geometry { resize, filter, width, height, rounding: CropRounding::HalfToEven };
        Ok((geometry, checked(Normalisation { scale: 1.0 / 255.0, mean, std }, Self::FILE, "std")?))
    }

    fn input_size(&self) -> Result<(u32, u32), FieldError> {
        let size = self.0.get("test_input_size").filter(|v| !v.is_null()).or_else(|| self.0.get("input_size"));
        let numbers: Option<Vec<u32>> = size.and_then(Value::as_array).and_then(|a| a.iter().map(whole).collect());
        match numbers.as_deref() {
            Some([3, height, width]) => Ok((*height, *width)),
            _ => Err(self.refuse("input_size", "it must be [3, height, width]")),
        }
    }

    fn text(&self, field: &'static str) -> Result<Option<&str>, FieldError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(field, format!("{other} is not a string"))),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the package speaking")]
    fn refuse(&self, field: &'static str, what: impl Into<String>) -> FieldError {
        FieldError::new(Self::FILE, field, what)
    }
}

struct HuggingFace<'a>(&'a Object);

impl HuggingFace<'_> {
    const FILE: &'static str = "preprocessor_config.json";

    fn resolve(&self) -> Result<(Geometry, Normalisation), FieldError> {
        let filter = self.filter()?;
        let crop = self.crop()?;
        let (resize, crop) = if self.switch("do_resize", true)? { self.resize(crop)? } else { (Resize::None, crop) };
        let (width, height) = match (crop, resize) {
            (Some(size), _) => size,
            (None, Resize::Exact { width, height }) => (width, height),
            (None, _) => {
                let what = "`size` keeps the aspect and nothing crops, so the model's input has no fixed size";
                return Err(self.refuse("crop_size", what));
            }
        };
        let geometry = Geometry { resize, filter, width, height, rounding: CropRounding::Down };
        Ok((geometry, self.normalisation()?))
    }

    /// The processor's class, by its new or its old field.
    fn class(&self) -> &str {
        ["image_processor_type", "feature_extractor_type"]
            .iter()
            .find_map(|field| self.0.get(*field).and_then(Value::as_str))
            .unwrap_or("")
    }

    fn resize(&self, crop: Option<(u32, u32)>) -> Result<(Resize, Option<(u32, u32)>), FieldError> {
        let size = self.0.get("size").ok_or_else(|| self.refuse("size", "it is missing, and `do_resize` is on"))?;
        let invalid = || self.refuse("size", format!("{size} is not understood"));
        match size {
            Value::Object(fields) => {
                let edge = |name: &str| fields.get(name).and_then(whole);
                match (edge("height"), edge("width"), edge("shortest_edge")) {
                    (Some(height), Some(width), None) => Ok((Resize::Exact { width, height }, crop)),
                    (None, None, Some(edge)) if fields.len() == 1 => self.shortest_edge(edge, crop),
                    _ => Err(invalid()),
                }
            }
            Value::Number(_) => {
                let edge = whole(size).ok_or_else(invalid)?;
                if self.class().starts_with("CLIP") || self.class().starts_with("ConvNext") {
                    self.shortest_edge(edge, crop)
                } else {
                    Ok((Resize::Exact { width: edge, height: edge }, crop))
                }
            }
            _ => Err(invalid()),
        }
    }

    /// ConvNext resizes to `edge / crop_pct` and crops to `edge` below 384 pixels, and squashes from there on.
    fn shortest_edge(&self, edge: u32, crop: Option<(u32, u32)>) -> Result<(Resize, Option<(u32, u32)>), FieldError> {
        if !self.class().starts_with("ConvNext") {
            return Ok((Resize::ShortestEdge(edge), crop));
        }
        if edge >= 384 {
            return Ok((Resize::Exact { width: edge, height: edge }, None));
        }
        let crop_pct = match self.0.get("crop_pct").filter(|v| !v.is_null()) {
            None => 224.0 / 256.0,
            Some(value) => value
                .as_f64()
                .filter(|pct| *pct > 0.0 && *pct <= 1.0)
                .ok_or_else(|| self.refuse("crop_pct", format!("{value} is not in 0 to 1")))?,
        };
        Ok((Resize::ShortestEdge(floor_u32(f64::from(edge) / crop_pct)), Some((edge, edge))))
    }

    /// Width and height of the centre crop, where there is one.
    fn crop(&self) -> Result<Option<(u32, u32)>, FieldError> {
        // CLIP, DeiT and MobileNet crop unless told otherwise; a config that names `crop_size` alone means it too.
        if !self.switch("do_center_crop", self.class().starts_with("CLIP"))? {
            return Ok(None);
        }
        let size = self
            .0
            .get("crop_size")
            .ok_or_else(|| self.refuse("crop_size", "it is missing, and `do_center_crop` is on"))?;
        let invalid = || self.refuse("crop_size", format!("{size} is not understood"));
        match size {
            Value::Object(fields) => {
                let edge = |name: &str| fields.get(name).and_then(whole);
                Ok(Some((edge("width").ok_or_else(invalid)?, edge("height").ok_or_else(invalid)?)))
            }
            _ => whole(size).map(|edge| Some((edge, edge))).ok_or_else(invalid),
        }
    }

    fn filter(&self) -> Result<Filter, FieldError> {
        match self.0.get("resample").filter(|v| !v.is_null()).and_then(Value::as_u64) {
            Some(0) => Ok(Filter::Nearest),
            Some(1) => Ok(Filter::Lanczos),
            Some(2) => Ok(Filter::Bilinear),
            Some(3) => Ok(Filter::Bicubic),
            Some(4) => Ok(Filter::Box),
            Some(5) => Ok(Filter::Hamming),
            Some(code) => Err(self.refuse("resample", format!("{code} is not one of PIL's codes 0 to 5"))),
            None if !self.switch("do_resize", true)? => Ok(Filter::Nearest),
            None => {
                Err(self
                    .refuse("resample", "it is missing, and its default differs between processors; give PIL's code"))
            }
        }
    }

    fn normalisation(&self) -> Result<Normalisation, FieldError> {
        if self.switch("rescale_offset", false)? {
            return Err(
                self.refuse("rescale_offset", "it is not supported; fold it into the graph or into `image_mean`")
            );
        }
        let scale = if self.switch("do_rescale", true)? {
            match self.0.get("rescale_factor").filter(|v| !v.is_null()) {
                None => 1.0 / 255.0,
                Some(value) => {
                    value.as_f64().ok_or_else(|| self.refuse("rescale_factor", format!("{value} is not a number")))?
                }
            }
        } else {
            1.0
        };
        let (mean, std) = if self.switch("do_normalize", true)? {
            let required = |field| {
                channels(self.0.get(field), Self::FILE, field)?
                    .ok_or_else(|| self.refuse(field, "it is missing, and `do_normalize` is on"))
            };
            (required("image_mean")?, required("image_std")?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        #[expect(clippy::cast_possible_truncation, reason = "models compute in float32")]
        let scale = scale as f32;
        checked(Normalisation { scale, mean, std }, Self::FILE, "image_std")
    }

    fn switch(&self, field: &'static str, default: bool) -> Result<bool, FieldError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(self.refuse(field, format!("{other} is not true or false"))),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the package speaking")]
    fn refuse(&self, field: &'static str, what: impl Into<String>) -> FieldError {
        FieldError::new(Self::FILE, field, what)
    }
}

/// Three numbers, or one that stands for all three.
fn channels(value: Option<&Value>, file: &'static str, field: &'static str) -> Result<Option<[f32; 3]>, FieldError> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    let numbers: Option<Vec<f64>> = match value {
        Value::Array(list) => list.iter().map(Value::as_f64).collect(),
        single => single.as_f64().map(|n| vec![n; 3]),
    };
    #[expect(clippy::cast_possible_truncation, reason = "models compute in float32")]
    match numbers.as_deref() {
        Some([r, g, b]) => Ok(Some([*r as f32, *g as f32, *b as f32])),
        _ => Err(FieldError::new(file, field, format!("{value} is not one number a channel, red, green, blue"))),
    }
}

fn checked(n: Normalisation, file: &'static str, field: &'static str) -> Result<Normalisation, FieldError> {
    if n.std.iter().all(|s| s.is_finite() && *s > 0.0) && n.mean.iter().all(|m| m.is_finite()) {
        return Ok(n);
    }
    Err(FieldError::new(file, field, "every deviation must be above 0 and every mean finite"))
}

fn whole(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=8192).contains(n))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "edges are checked to be 1 to 8192")]
fn floor_u32(value: f64) -> u32 {
    value.floor() as u32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 255")]
fn clamp_u8(value: f32) -> u8 {
    value.clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timm(json: &str) -> Result<(Geometry, Normalisation), FieldError> {
        resolve(&serde_json::from_str(json).unwrap(), None)
    }

    fn hugging_face(json: &str) -> Result<(Geometry, Normalisation), FieldError> {
        resolve(&Object::new(), Some(&serde_json::from_str(json).unwrap()))
    }

    #[test]
    fn timm_scales_by_crop_pct_rounded_down() {
        let (geometry, _) =
            timm(r#"{"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}}"#)
                .unwrap();
        assert_eq!(geometry.resize, Resize::ShortestEdge(248));
        assert_eq!((geometry.width, geometry.height, geometry.filter), (224, 224, Filter::Bicubic));
        let (flat, _) = timm(r#"{"input_size": [3, 96, 64], "crop_pct": 1.0, "crop_mode": "squash"}"#).unwrap();
        assert_eq!(flat.resize, Resize::Exact { width: 64, height: 96 });
        let (border, _) =
            timm(r#"{"input_size": [3, 96, 96], "crop_pct": 1.0, "crop_mode": "border", "mean": 0.5, "std": 0.5}"#)
                .unwrap();
        assert_eq!(border.resize, Resize::LongestEdge { edge: 96, fill: [128; 3] });
    }

    #[test]
    fn hugging_face_sizes_mean_what_their_processor_says() {
        let rest = r#""resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": 0.5"#;
        let geometry = |fields: &str| hugging_face(&format!("{{{fields}, {rest}}}")).map(|(geometry, _)| geometry);
        let vit = geometry(r#""image_processor_type": "ViTImageProcessor", "size": 224"#).unwrap();
        assert_eq!(vit.resize, Resize::Exact { width: 224, height: 224 });
        let clip =
            geometry(r#""feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224"#).unwrap();
        assert_eq!((clip.resize, clip.width), (Resize::ShortestEdge(224), 224));
        let small =
            geometry(r#""image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}"#).unwrap();
        assert_eq!((small.resize, small.width), (Resize::ShortestEdge(256), 224));
        let large =
            geometry(r#""image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}"#).unwrap();
        assert_eq!(large.resize, Resize::Exact { width: 384, height: 384 });
        assert_eq!(geometry(r#""size": {"shortest_edge": 224}"#).unwrap_err().field, "crop_size");
    }

    #[test]
    fn what_is_not_understood_is_refused_by_field() {
        for (json, field) in [
            (r#"{"size": 224, "resample": 9}"#, "resample"),
            (r#"{"size": 224}"#, "resample"),
            (r#"{"resample": 3}"#, "size"),
            (r#"{"size": {"longest_edge": 3}, "resample": 3}"#, "size"),
            (r#"{"size": 224, "resample": 3, "image_mean": 0.5, "image_std": 0}"#, "image_std"),
            (r#"{"size": 224, "resample": 3, "image_mean": [1, 2]}"#, "image_mean"),
            (r#"{"size": 224, "resample": 3, "do_resize": "yes"}"#, "do_resize"),
        ] {
            assert_eq!(hugging_face(json).unwrap_err().field, field, "{json}");
        }
        assert_eq!(timm(r#"{"pretrained_cfg": {"input_size": [1, 8, 8]}}"#).unwrap_err().field, "input_size");
        assert_eq!(timm("{}").unwrap_err().field, "pretrained_cfg");
    }
}
