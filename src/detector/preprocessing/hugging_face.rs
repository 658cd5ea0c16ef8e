//! Hugging Face's `preprocessor_config.json`, with the same result as the image processor that it names.

use serde_json::Value;

use super::processors::{self, DefaultSize, Processor, Quirk};
use super::{
    Channels, CropRounding, FieldError, Geometry, JsonFields, Normalisation, ResampleFilter, Resize, checked,
    edge_pixels, enlarged, floor,
};

/// The part that ConvNext's crop keeps where the file does not state it.
const CONVNEXT_CROP_PCT: f64 = 224.0 / 256.0;
const POOLFORMER_CROP_PCT: f64 = 0.9;

/// Switches that change pixels and are read here.
const SWITCHES: [&str; 4] = ["do_resize", "do_center_crop", "do_rescale", "do_normalize"];
/// Switches that change nothing here: an image is always RGB, and labels are reduced in segmentation only.
const SWITCHES_WITHOUT_EFFECT: [&str; 2] = ["do_convert_rgb", "do_reduce_labels"];
/// Fields that change pixels, each with the quirks that read it.
const QUIRK_FIELDS: [(&str, &[Quirk]); 9] = [
    ("do_flip_channel_order", &[Quirk::MobileVit]),
    ("rescale_offset", &[Quirk::EfficientNet]),
    ("include_top", &[Quirk::EfficientNet]),
    ("crop_pct", &[Quirk::ConvNext, Quirk::PoolFormer]),
    ("max_size", &[]),
    ("size_divisor", &[]),
    ("ensure_multiple_of", &[]),
    ("keep_aspect_ratio", &[]),
    ("use_square_size", &[]),
];

pub(super) fn resolve(fields: JsonFields<'_>) -> Result<(Geometry, Normalisation), FieldError> {
    let class = fields.text("image_processor_type")?.map(|class| ("image_processor_type", class));
    let class = class.or(fields.text("feature_extractor_type")?.map(|class| ("feature_extractor_type", class)));
    let processor = match class {
        None => &processors::UNNAMED,
        Some((field, class)) => processors::find(class).ok_or_else(|| {
            let known = processors::known();
            fields.refuse(field, format!("{class} is not supported; supported are {known}"))
        })?,
    };
    let reader = ProcessorReader { fields, processor };
    reader.refuse_unread_fields()?;
    Ok((reader.geometry()?, reader.normalisation()?))
}

struct ProcessorReader<'a> {
    fields: JsonFields<'a>,
    processor: &'static Processor,
}

impl ProcessorReader<'_> {
    /// Refuses a field that asks for something and is not read here: ignoring it would give other pixels.
    fn refuse_unread_fields(&self) -> Result<(), FieldError> {
        let quirk = self.processor.quirk;
        for (field, value) in self.fields.json {
            let asks = !matches!(value, Value::Null | Value::Bool(false));
            let special = QUIRK_FIELDS.iter().find(|(special, _)| special == field);
            let read = match special {
                Some((_, habits)) => habits.contains(&quirk),
                None => {
                    !field.starts_with("do_")
                        || SWITCHES.contains(&&**field)
                        || SWITCHES_WITHOUT_EFFECT.contains(&&**field)
                }
            };
            if asks && !read {
                let what = match self.processor.name {
                    "" => "it is not supported".to_owned(),
                    name => format!("it is not supported for the processor {name}"),
                };
                return Err(self.fields.refuse(field.clone(), what));
            }
        }
        Ok(())
    }

    fn geometry(&self) -> Result<Geometry, FieldError> {
        let crop = self.crop()?;
        let (filter, (resize, crop)) = if self.fields.switch("do_resize")?.unwrap_or(true) {
            (self.filter()?, self.resize(crop)?)
        } else {
            (ResampleFilter::Nearest, (Resize::None, crop))
        };
        let (width, height) = match (crop, resize) {
            (Some(size), _) => size,
            (None, Resize::Exact { width, height }) => (width, height),
            (None, _) => {
                let what = "`size` keeps the aspect ratio and nothing crops, so the model's input has no fixed size";
                return Err(self.fields.refuse("crop_size", what));
            }
        };
        Ok(Geometry { resize, filter, width, height, rounding: CropRounding::Down })
    }

    /// The first step, and the crop that follows it.
    fn resize(&self, crop: Option<(u32, u32)>) -> Result<(Resize, Option<(u32, u32)>), FieldError> {
        let size = self.size()?;
        match (self.processor.quirk, size) {
            (Quirk::ConvNext | Quirk::Levit | Quirk::PoolFormer, Resize::ShortestEdgeWithin { .. }) => {
                let what = format!("`longest_edge` in it is not supported for the processor {}", self.processor.name);
                Err(self.fields.refuse("size", what))
            }
            (Quirk::ConvNext, Resize::ShortestEdge(edge)) if edge >= 384 => {
                Ok((Resize::Exact { width: edge, height: edge }, crop))
            }
            (Quirk::ConvNext, Resize::ShortestEdge(edge)) => {
                let crop_pct = self.fields.crop_pct("crop_pct")?.unwrap_or(CONVNEXT_CROP_PCT);
                Ok((Resize::ShortestEdge(enlarged(edge, crop_pct)), Some((edge, edge))))
            }
            (Quirk::ConvNext, _) => Err(self.fields.refuse("size", "ConvNext needs `shortest_edge` in it")),
            (Quirk::Levit, Resize::ShortestEdge(edge)) => {
                // A product of floats, as in the processor, since it decides how the edge is rounded.
                Ok((Resize::ShortestEdge(floor(256.0 / 224.0 * f64::from(edge))), crop))
            }
            (Quirk::PoolFormer, size) => {
                let crop_pct = self.fields.crop_pct("crop_pct")?.unwrap_or(POOLFORMER_CROP_PCT);
                let resize = match size {
                    Resize::Exact { width, height } if width != height => {
                        Resize::Exact { width: enlarged(width, crop_pct), height: enlarged(height, crop_pct) }
                    }
                    Resize::ShortestEdge(edge) | Resize::Exact { width: edge, .. } => {
                        Resize::ShortestEdge(enlarged(edge, crop_pct))
                    }
                    other => other,
                };
                Ok((resize, crop))
            }
            (_, size) => Ok((size, crop)),
        }
    }

    /// `size` in any of its forms, or the processor's default.
    fn size(&self) -> Result<Resize, FieldError> {
        let Some(size) = self.fields.get("size") else {
            return match self.processor.size {
                DefaultSize::Square(edge) => Ok(Resize::Exact { width: edge, height: edge }),
                DefaultSize::Shortest(edge) => Ok(Resize::ShortestEdge(edge)),
                DefaultSize::Stated => Err(self.fields.refuse("size", "it is missing, and `do_resize` is on")),
            };
        };
        let invalid = || {
            let forms = "it must be a number, [height, width], {\"height\", \"width\"}, or {\"shortest_edge\"} with or without \"longest_edge\"";
            self.fields.refuse("size", format!("{size} is not supported; {forms}"))
        };
        match size {
            Value::Number(_) => {
                let edge = edge_pixels(size).ok_or_else(invalid)?;
                match self.fields.switch("default_to_square")?.or(self.processor.square) {
                    Some(true) => Ok(Resize::Exact { width: edge, height: edge }),
                    Some(false) => Ok(Resize::ShortestEdge(edge)),
                    None => Err(self.fields.refuse(
                        "image_processor_type",
                        "it is missing, and a bare number as `size` means a square to one processor and the shortest edge to another",
                    )),
                }
            }
            Value::Object(edges) => {
                let edge = |name: &str| edges.get(name).map(|value| edge_pixels(value).ok_or_else(invalid)).transpose();
                match (edge("height")?, edge("width")?, edge("shortest_edge")?, edge("longest_edge")?, edges.len()) {
                    (Some(height), Some(width), None, None, 2) => Ok(Resize::Exact { width, height }),
                    (None, None, Some(edge), None, 1) => Ok(Resize::ShortestEdge(edge)),
                    (None, None, Some(edge), Some(longest), 2) => Ok(Resize::ShortestEdgeWithin { edge, longest }),
                    _ => Err(invalid()),
                }
            }
            _ => {
                let (width, height) = pair(size).ok_or_else(invalid)?;
                Ok(Resize::Exact { width, height })
            }
        }
    }

    /// Width and height of the centre crop, where there is one.
    fn crop(&self) -> Result<Option<(u32, u32)>, FieldError> {
        let stated = self.fields.switch("do_center_crop")?;
        let size = self.fields.get("crop_size");
        match stated.or(self.processor.crops) {
            Some(false) => return Ok(None),
            Some(true) if self.processor.quirk == Quirk::ConvNext => {
                let what =
                    "ConvNext crops by itself, and releases of transformers differ in whether they crop a second time";
                return Err(self.fields.refuse("do_center_crop", what));
            }
            Some(true) => {}
            None if size.is_none() && self.processor.crop.is_none() => return Ok(None),
            None => {
                let what = "it is missing, and without it some processors ignore `crop_size` and others use it";
                return Err(self.fields.refuse("do_center_crop", what));
            }
        }
        let missing = || self.fields.refuse("crop_size", "it is missing, and `do_center_crop` is on");
        let Some(size) = size else {
            return self.processor.crop.map(|edge| Some((edge, edge))).ok_or_else(missing);
        };
        let invalid = || self.fields.refuse("crop_size", format!("{size} is not supported"));
        match size {
            Value::Object(edges) => {
                let edge = |name: &str| edges.get(name).and_then(edge_pixels).ok_or_else(invalid);
                Ok(Some((edge("width")?, edge("height")?)))
            }
            Value::Number(_) => Ok(Some(edge_pixels(size).map(|edge| (edge, edge)).ok_or_else(invalid)?)),
            _ => Ok(Some(pair(size).ok_or_else(invalid)?)),
        }
    }

    fn filter(&self) -> Result<ResampleFilter, FieldError> {
        let stated = self.fields.get("resample");
        let code = match stated {
            Some(value) => value.as_u64(),
            None => self.processor.resample,
        };
        match code {
            Some(0) => Ok(ResampleFilter::Nearest),
            Some(1) => Ok(ResampleFilter::Lanczos),
            Some(2) => Ok(ResampleFilter::Bilinear),
            Some(3) => Ok(ResampleFilter::Bicubic),
            Some(4) => Ok(ResampleFilter::Box),
            Some(5) => Ok(ResampleFilter::Hamming),
            _ => Err(self.fields.refuse(
                "resample",
                match stated {
                    Some(value) => format!("{value} is not one of PIL's codes 0 to 5"),
                    None => {
                        "it is missing, and processors and their releases differ in its default; add PIL's code".into()
                    }
                },
            )),
        }
    }

    fn normalisation(&self) -> Result<Normalisation, FieldError> {
        let fields = self.fields;
        let rescales = fields.switch("do_rescale")?.unwrap_or(true);
        let scale = match fields.get("rescale_factor").filter(|_| rescales) {
            None if rescales => 1.0 / 255.0,
            None => 1.0,
            Some(value) => value
                .as_f64()
                .filter(|factor| factor.is_finite() && *factor > 0.0)
                .ok_or_else(|| fields.refuse("rescale_factor", format!("{value} is not a number above 0")))?,
        };
        #[expect(clippy::cast_possible_truncation, reason = "models compute in float32")]
        let scale = scale as f32;
        let plain = Normalisation { scale, mean: [0.0; 3], std: [1.0; 3], channels: Channels::Rgb };

        if self.processor.quirk == Quirk::MobileVit {
            if fields.switch("do_normalize")? == Some(true) {
                return Err(fields.refuse("do_normalize", "MobileViT's processor never normalises; set it to false"));
            }
            let flips = fields.switch("do_flip_channel_order")?.unwrap_or(true);
            return Ok(Normalisation { channels: if flips { Channels::Bgr } else { Channels::Rgb }, ..plain });
        }

        let statistic = |field, default: Option<[f32; 3]>| {
            fields
                .channels(field)?
                .or(default)
                .ok_or_else(|| fields.refuse(field, "it is missing, and the file names no processor with a default"))
        };
        let mean = || statistic("image_mean", self.processor.statistics.map(|(mean, _)| mean));
        let std = || statistic("image_std", self.processor.statistics.map(|(_, std)| std));
        let normalises = fields.switch("do_normalize")?.unwrap_or(true);
        let mut result = if normalises { Normalisation { mean: mean()?, std: std()?, ..plain } } else { plain };
        if self.processor.quirk == Quirk::EfficientNet {
            // byte * scale - 1 equals a mean that is larger by 1.
            if rescales && fields.switch("rescale_offset")?.unwrap_or(false) {
                result.mean = result.mean.map(|mean| mean + 1.0);
            }
            if fields.switch("include_top")?.unwrap_or(true) {
                let again = std()?;
                result.std = std::array::from_fn(|channel| result.std[channel] * again[channel]);
            }
        }
        checked(result, fields, "image_std")
    }
}

/// Width and height of `[height, width]`.
fn pair(value: &Value) -> Option<(u32, u32)> {
    match value.as_array()?.as_slice() {
        [height, width] => Some((edge_pixels(width)?, edge_pixels(height)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{JsonObject, ProcessorFiles, resolve};
    use super::*;

    fn read(json: &str) -> Result<(Geometry, Normalisation), FieldError> {
        let preprocessor = serde_json::from_str(json).unwrap();
        let files = ProcessorFiles { preprocessor: Some(&preprocessor), processor: None };
        resolve(&JsonObject::new(), files, None, None)
    }

    /// What a processor does when its file has only these fields.
    fn processor(name: &str, fields: &str) -> (Geometry, Normalisation) {
        let comma = if fields.is_empty() { "" } else { ", " };
        read(&format!(r#"{{"image_processor_type": "{name}ImageProcessor"{comma}{fields}}}"#)).unwrap()
    }

    fn square(edge: u32) -> Resize {
        Resize::Exact { width: edge, height: edge }
    }

    #[test]
    fn fields_that_are_missing_have_the_processor_s_defaults() {
        for (name, fields, resize, filter, edge) in [
            ("ViT", "", square(224), ResampleFilter::Bilinear, 224),
            ("DeiT", "", square(256), ResampleFilter::Bicubic, 224),
            ("CLIP", "", Resize::ShortestEdge(224), ResampleFilter::Bicubic, 224),
            ("Bit", "", Resize::ShortestEdge(224), ResampleFilter::Bicubic, 224),
            ("MobileNetV2", "", Resize::ShortestEdge(256), ResampleFilter::Bilinear, 224),
            ("Siglip", "", square(224), ResampleFilter::Bicubic, 224),
            ("Segformer", "", square(512), ResampleFilter::Bilinear, 512),
            ("Levit", "", Resize::ShortestEdge(256), ResampleFilter::Bicubic, 224),
            ("PoolFormer", "", Resize::ShortestEdge(248), ResampleFilter::Bicubic, 224),
            ("Pvt", r#""resample": 2"#, square(224), ResampleFilter::Bilinear, 224),
            ("EfficientNet", r#""resample": 0"#, square(346), ResampleFilter::Nearest, 346),
            ("MobileViT", r#""resample": 2"#, Resize::ShortestEdge(224), ResampleFilter::Bilinear, 256),
            ("ConvNext", r#""resample": 3"#, square(384), ResampleFilter::Bicubic, 384),
            ("Beit", r#""size": 224, "do_center_crop": false"#, square(224), ResampleFilter::Bicubic, 224),
        ] {
            let (geometry, _) = processor(name, fields);
            assert_eq!((geometry.resize, geometry.filter, geometry.width), (resize, filter, edge), "{name}");
        }
    }

    #[test]
    fn size_has_many_forms() {
        for (name, size, resize) in [
            ("ViT", "200", square(200)),
            ("ViT", r#"{"height": 200, "width": 100}"#, Resize::Exact { width: 100, height: 200 }),
            ("ViT", "[200, 100]", Resize::Exact { width: 100, height: 200 }),
            ("CLIP", "200", Resize::ShortestEdge(200)),
            ("CLIP", r#"{"height": 200, "width": 200}"#, square(200)),
            ("CLIP", r#"{"shortest_edge": 200}"#, Resize::ShortestEdge(200)),
            (
                "CLIP",
                r#"{"shortest_edge": 200, "longest_edge": 300}"#,
                Resize::ShortestEdgeWithin { edge: 200, longest: 300 },
            ),
            ("Levit", "192", Resize::ShortestEdge(219)),
            ("Levit", r#"{"height": 192, "width": 192}"#, square(192)),
            ("PoolFormer", r#"{"height": 192, "width": 192}"#, Resize::ShortestEdge(213)),
            ("PoolFormer", r#"{"height": 192, "width": 96}"#, Resize::Exact { width: 106, height: 213 }),
        ] {
            assert_eq!(processor(name, &format!(r#""size": {size}"#)).0.resize, resize, "{name} {size}");
        }
        let stated = processor("CLIP", r#""size": 200, "default_to_square": true"#);
        assert_eq!(stated.0.resize, square(200));
    }

    #[test]
    fn old_and_fast_names_are_the_same_processor() {
        for class in [
            r#""image_processor_type": "CLIPImageProcessorFast""#,
            r#""feature_extractor_type": "CLIPFeatureExtractor""#,
            r#""image_processor_type": "CLIPImageProcessor", "feature_extractor_type": "ViTFeatureExtractor""#,
        ] {
            let (geometry, _) = read(&format!(r#"{{{class}, "size": 224, "do_pad": null}}"#)).unwrap();
            assert_eq!(geometry.resize, Resize::ShortestEdge(224), "{class}");
        }
    }

    #[test]
    fn a_switch_that_is_null_is_off() {
        let (geometry, n) = processor("CLIP", r#""do_resize": null, "do_normalize": null, "do_rescale": null"#);
        assert_eq!((geometry.resize, n.scale, n.mean), (Resize::None, 1.0, [0.0; 3]));
        let uncropped = read(r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": null}"#);
        assert_eq!(uncropped.unwrap_err().field, "crop_size");
        let (_, again) = processor("EfficientNet", r#""resample": 0, "image_std": 0.5"#);
        let (_, once) = processor("EfficientNet", r#""resample": 0, "image_std": 0.5, "include_top": null"#);
        assert_eq!((again.std, once.std), ([0.25; 3], [0.5; 3]));
    }

    #[test]
    fn convnext_crops_below_384_and_squashes_from_there_on() {
        let convnext = |size: u32| processor("ConvNext", &format!(r#""resample": 3, "size": {size}"#)).0;
        assert_eq!((convnext(224).resize, convnext(224).width), (Resize::ShortestEdge(256), 224));
        assert_eq!((convnext(383).resize, convnext(383).width), (Resize::ShortestEdge(437), 383));
        assert_eq!((convnext(384).resize, convnext(384).width), (square(384), 384));
        let stated = processor("ConvNext", r#""resample": 3, "size": 224, "crop_pct": 0.95"#);
        assert_eq!(stated.0.resize, Resize::ShortestEdge(235));
    }

    /// From transformers 5.24: `EfficientNetImageProcessor` divides by the standard deviation twice unless `include_top` is off.
    #[test]
    fn efficientnet_offsets_and_normalises_again() {
        let of = |fields: &str| {
            let (_, n) =
                processor("EfficientNet", &format!(r#""resample": 0, "image_mean": 0.5, "image_std": 0.4{fields}"#));
            // A byte of 255 through the edge_pixels formula.
            (255.0 * n.scale - n.mean[0]) / n.std[0]
        };
        for (fields, expected) in [
            ("", (1.0 - 0.5) / 0.4 / 0.4),
            (r#", "include_top": false"#, (1.0 - 0.5) / 0.4),
            (r#", "rescale_offset": true"#, (1.0 - 1.0 - 0.5) / 0.4 / 0.4),
            (
                r#", "rescale_offset": true, "rescale_factor": 0.00784313725, "include_top": false"#,
                (2.0 - 1.0 - 0.5) / 0.4,
            ),
            (r#", "do_normalize": false"#, 1.0 / 0.4),
            (r#", "do_rescale": false, "rescale_offset": true, "include_top": false"#, (255.0 - 0.5) / 0.4),
        ] {
            let found = of(fields);
            assert!((found - expected).abs() < 1e-3, "{fields}: {found} instead of {expected}");
        }
    }

    #[test]
    fn mobilevit_puts_blue_first_and_never_normalises() {
        let (_, flipped) = processor("MobileViT", r#""resample": 2"#);
        assert_eq!((flipped.channels, flipped.mean, flipped.std), (Channels::Bgr, [0.0; 3], [1.0; 3]));
        let (_, plain) = processor("MobileViT", r#""resample": 2, "do_flip_channel_order": false"#);
        assert_eq!(plain.channels, Channels::Rgb);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_field() {
        let vit = r#""image_processor_type": "ViTImageProcessor""#;
        let unnamed = r#""size": {"height": 8, "width": 8}, "resample": 3"#;
        for (fields, field) in [
            (r#""image_processor_type": "DonutImageProcessor""#.to_owned(), "image_processor_type"),
            (r#""feature_extractor_type": "MyFeatureExtractor""#.into(), "feature_extractor_type"),
            (format!(r#"{vit}, "resample": 9"#), "resample"),
            (format!(r#"{vit}, "resample": "bicubic""#), "resample"),
            (format!(r#"{vit}, "size": {{"longest_edge": 3}}"#), "size"),
            (format!(r#"{vit}, "size": {{"height": 3}}"#), "size"),
            (format!(r#"{vit}, "size": {{"height": 3, "width": 3, "shortest_edge": 3}}"#), "size"),
            (format!(r#"{vit}, "size": {{"shortest_edge": 224}}"#), "crop_size"),
            (format!(r#"{vit}, "size": 0"#), "size"),
            (format!(r#"{vit}, "size": [1, 2, 3]"#), "size"),
            (format!(r#"{vit}, "do_center_crop": true"#), "crop_size"),
            (format!(r#"{vit}, "image_std": 0"#), "image_std"),
            (format!(r#"{vit}, "image_mean": [1, 2]"#), "image_mean"),
            (format!(r#"{vit}, "rescale_factor": "1/255""#), "rescale_factor"),
            (format!(r#"{vit}, "do_resize": "yes""#), "do_resize"),
            (format!(r#"{vit}, "do_pad": true"#), "do_pad"),
            (format!(r#"{vit}, "do_thumbnail": true"#), "do_thumbnail"),
            (format!(r#"{vit}, "do_flip_channel_order": true"#), "do_flip_channel_order"),
            (format!(r#"{vit}, "rescale_offset": true"#), "rescale_offset"),
            (format!(r#"{vit}, "crop_pct": 0.9"#), "crop_pct"),
            (format!(r#"{vit}, "size_divisor": 32"#), "size_divisor"),
            (r#""image_processor_type": "ConvNextImageProcessor""#.into(), "resample"),
            (r#""image_processor_type": "EfficientNetImageProcessor""#.into(), "resample"),
            (r#""image_processor_type": "BeitImageProcessor", "size": 224"#.into(), "do_center_crop"),
            (r#""image_processor_type": "BeitImageProcessor", "do_center_crop": true"#.into(), "size"),
            (
                r#""image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 9, "longest_edge": 9}"#
                    .into(),
                "size",
            ),
            (
                r#""image_processor_type": "MobileViTImageProcessor", "resample": 2, "do_normalize": true"#.into(),
                "do_normalize",
            ),
            (r#""size": 224, "resample": 3"#.into(), "image_processor_type"),
            (r#""resample": 3"#.into(), "size"),
            (r#""size": [8, 8]"#.into(), "resample"),
            (format!(r#"{unnamed}, "crop_size": 8"#), "do_center_crop"),
            (unnamed.to_owned(), "image_mean"),
        ] {
            assert_eq!(read(&format!("{{{fields}}}")).unwrap_err().field, field, "{fields}");
        }
        let nothing =
            format!(r#"{{{vit}, "do_pad": false, "do_reduce_labels": true, "do_convert_rgb": true, "do_pad": null}}"#);
        assert!(read(&nothing).is_ok(), "fields that ask for nothing are not refused");
    }
}
