//! timm's `pretrained_cfg`, as `timm.data.resolve_data_config` and `create_transform` read it for evaluation.

use super::{
    Channels, CropRounding, FieldError, Geometry, IMAGENET, JsonFields, Normalisation, ResampleFilter, Resize, checked,
    edge_pixels, enlarged,
};

const SUPPORTED: &str = "supported are bilinear, bicubic, lanczos, nearest, box and hamming";

pub(super) fn resolve(
    fields: JsonFields<'_>,
    fixed: Option<(u32, u32)>,
) -> Result<(Geometry, Normalisation), FieldError> {
    let filter = match fields.text("interpolation")?.unwrap_or("bicubic") {
        "bilinear" => ResampleFilter::Bilinear,
        "bicubic" => ResampleFilter::Bicubic,
        "lanczos" => ResampleFilter::Lanczos,
        "nearest" => ResampleFilter::Nearest,
        "box" => ResampleFilter::Box,
        "hamming" => ResampleFilter::Hamming,
        "random" => {
            let what =
                format!("\"random\" is for training, and would score an image differently each time; {SUPPORTED}");
            return Err(fields.refuse("interpolation", what));
        }
        other => return Err(fields.refuse("interpolation", format!("\"{other}\" is not supported; {SUPPORTED}"))),
    };
    let mean = fields.channels("mean")?.unwrap_or(IMAGENET.0);
    let std = fields.channels("std")?.unwrap_or(IMAGENET.1);

    let (size, crop_pct) = test_time(fields, fixed)?;
    let (height, width) = size;
    let (taller, wider) = (enlarged(height, crop_pct), enlarged(width, crop_pct));
    let resize = match fields.text("crop_mode")?.unwrap_or("center") {
        "squash" => Resize::Exact { width: wider, height: taller },
        "center" if width == height => Resize::ShortestEdge(taller),
        "center" => Resize::Cover { width: wider, height: taller },
        "border" => {
            let fill = mean.map(|m| clamp_u8((m * 255.0).round_ties_even()));
            Resize::Fit { width: wider, height: taller, fill }
        }
        other => {
            return Err(fields.refuse(
                "crop_mode",
                format!("\"{other}\" is not supported; supported are center, squash and border"),
            ));
        }
    };
    let geometry = Geometry { resize, filter, width, height, rounding: CropRounding::HalfToEven };
    let normalisation = Normalisation { scale: 1.0 / 255.0, mean, std, channels: Channels::Rgb };
    Ok((geometry, checked(normalisation, fields, "std")?))
}

/// Height and width, and the part of the edge that the crop keeps.
///
/// timm uses `input_size` and `crop_pct`, unless it is asked to use the larger size at which some weights are tested. A
/// model that was exported at that larger size needs it.
fn test_time(fields: JsonFields<'_>, fixed: Option<(u32, u32)>) -> Result<((u32, u32), f64), FieldError> {
    const DEFAULT: f64 = 0.875;
    let crop_pct = fields.crop_pct("crop_pct")?;
    let usual = size(fields, "input_size")?
        .ok_or_else(|| fields.refuse("input_size", "it is missing; it must be [3, height, width]"))?;
    match size(fields, "test_input_size")? {
        Some(test) if fixed == Some(test) && test != usual => {
            Ok((test, fields.crop_pct("test_crop_pct")?.or(crop_pct).unwrap_or(DEFAULT)))
        }
        _ => Ok((usual, crop_pct.unwrap_or(DEFAULT))),
    }
}

fn size(fields: JsonFields<'_>, field: &'static str) -> Result<Option<(u32, u32)>, FieldError> {
    let Some(value) = fields.get(field) else { return Ok(None) };
    let numbers: Option<Vec<u32>> = value.as_array().and_then(|list| list.iter().map(edge_pixels).collect());
    match numbers.as_deref() {
        Some([3, height, width]) => Ok(Some((*height, *width))),
        _ => Err(fields.refuse(field, format!("{value} is not [3, height, width]"))),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 255")]
fn clamp_u8(value: f32) -> u8 {
    value.clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::super::{JsonObject, ProcessorFiles, resolve};
    use super::*;

    fn timm(json: &str) -> Result<(Geometry, Normalisation), FieldError> {
        timm_at(json, None)
    }

    fn timm_at(json: &str, fixed: Option<(u32, u32)>) -> Result<(Geometry, Normalisation), FieldError> {
        let files = ProcessorFiles { preprocessor: None, processor: None };
        resolve(&serde_json::from_str(json).unwrap(), files, None, fixed)
    }

    #[test]
    fn edges_are_scaled_by_crop_pct_rounded_down() {
        let (geometry, _) = timm(r#"{"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.9}}"#).unwrap();
        assert_eq!(geometry.resize, Resize::ShortestEdge(248));
        assert_eq!((geometry.width, geometry.height, geometry.filter), (224, 224, ResampleFilter::Bicubic));
        let (flat, _) = timm(r#"{"input_size": [3, 96, 64], "crop_pct": 1.0, "crop_mode": "squash"}"#).unwrap();
        assert_eq!(flat.resize, Resize::Exact { width: 64, height: 96 });
        let (oblong, _) = timm(r#"{"input_size": [3, 96, 64], "crop_pct": 0.8}"#).unwrap();
        assert_eq!(oblong.resize, Resize::Cover { width: 80, height: 120 });
        let (border, _) =
            timm(r#"{"input_size": [3, 96, 96], "crop_pct": 1.0, "crop_mode": "border", "mean": 0.5, "std": 0.5}"#)
                .unwrap();
        assert_eq!(border.resize, Resize::Fit { width: 96, height: 96, fill: [128; 3] });
    }

    #[test]
    fn a_model_exported_at_the_size_for_tests_is_prepared_for_that_size() {
        let json = r#"{"input_size": [3, 224, 224], "crop_pct": 0.875,
                       "test_input_size": [3, 288, 288], "test_crop_pct": 1.0}"#;
        for (fixed, edge, resize) in [(None, 224, 256), (Some((224, 224)), 224, 256), (Some((288, 288)), 288, 288)] {
            let (geometry, _) = timm_at(json, fixed).unwrap();
            assert_eq!((geometry.width, geometry.resize), (edge, Resize::ShortestEdge(resize)), "{fixed:?}");
        }
    }

    #[test]
    fn transformers_wrapper_around_timm_keeps_timm_s_fields() {
        let processor: JsonObject = serde_json::from_str(
            r#"{"image_processor_type": "TimmWrapperImageProcessor",
                "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0, "interpolation": "lanczos"}}"#,
        )
        .unwrap();
        let files = ProcessorFiles { preprocessor: Some(&processor), processor: None };
        let (geometry, _) = resolve(&JsonObject::new(), files, None, None).unwrap();
        assert_eq!((geometry.resize, geometry.filter), (Resize::ShortestEdge(64), ResampleFilter::Lanczos));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_field() {
        for (fields, field) in [
            (r#""input_size": [1, 8, 8]"#, "input_size"),
            (r#""crop_pct": 1"#, "input_size"),
            (r#""input_size": [3, 8, 8], "test_input_size": [3, 9]"#, "test_input_size"),
            (r#""input_size": [3, 8, 8], "interpolation": "random""#, "interpolation"),
            (r#""input_size": [3, 8, 8], "interpolation": 3"#, "interpolation"),
            (r#""input_size": [3, 8, 8], "crop_mode": "corner""#, "crop_mode"),
            (r#""input_size": [3, 8, 8], "crop_pct": 1.5"#, "crop_pct"),
            (r#""input_size": [3, 8, 8], "mean": [0.5, 0.5]"#, "mean"),
            (r#""input_size": [3, 8, 8], "std": [0.5, 0.5, 0]"#, "std"),
        ] {
            assert_eq!(timm(&format!(r#"{{"pretrained_cfg": {{{fields}}}}}"#)).unwrap_err().field, field, "{fields}");
        }
        assert_eq!(timm("{}").unwrap_err().field, "pretrained_cfg");
    }
}
