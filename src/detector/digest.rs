//! A detector's digest: what decides its scores, as canonical JSON, and the SHA-256 of that.
//!
//! The name, the device, the batch size and `shadow` decide nothing, so they have no part in it.

use serde::Serialize;

use super::calibration::RisingLine;
use super::{
    Activation, Axes, Channels, CropRounding, Geometry, Normalisation, ResampleFilter, Resize, ScoreCalibration,
};
use crate::canonical::{self, without_negative_zero};

/// The version of the canonical form. It changes only when the meaning of its fields changes.
const VERSION: u32 = 1;

/// The settings of the decoder that decide which pixels a detector is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeSettings {
    /// A number that grows when the decoder's code gives other pixels for the same file.
    pub version: u32,
    /// Frames of an animation that are screened.
    pub max_frames: u32,
    /// Views of an image that are screened.
    pub max_views: u32,
    /// In the mode `fast`: how many times, in tenths, a shrunk image still exceeds what it is resized to. In the mode
    /// `exact` there is none.
    pub fast_tenths: Option<u64>,
}

/// Everything that decides a detector's scores.
pub(super) struct DigestInput<'a> {
    pub(super) model_sha256: &'a str,
    pub(super) labels: &'a [String],
    pub(super) geometry: Geometry,
    pub(super) normalisation: Normalisation,
    pub(super) axes: Option<Axes>,
    pub(super) activation: Option<Activation>,
    pub(super) multi_label: bool,
    pub(super) calibration: Option<&'a ScoreCalibration>,
    pub(super) decode: DecodeSettings,
}

/// The canonical form. Fields are declared in the order of their names.
#[derive(Serialize)]
struct Canonical<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    axes: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CanonicalCalibration<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<&'static str>,
    crop: CanonicalCrop,
    decode: CanonicalDecode,
    filter: &'static str,
    labels: &'a [String],
    mean: [f32; 3],
    model: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multi_label: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'static str>,
    resize: CanonicalResize,
    scale: f32,
    std: [f32; 3],
    version: u32,
}

/// One kind of calibration. The field of the other kind is left out.
#[derive(Serialize, Default)]
struct CanonicalCalibration<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    isotonic: Option<&'a [Option<RisingLine>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
}

impl<'a> From<&'a ScoreCalibration> for CanonicalCalibration<'a> {
    fn from(calibration: &'a ScoreCalibration) -> Self {
        match calibration {
            ScoreCalibration::Temperature(t) => Self { temperature: Some(*t), ..Self::default() },
            ScoreCalibration::Isotonic(lines) => Self { isotonic: Some(lines), ..Self::default() },
        }
    }
}

#[derive(Serialize)]
struct CanonicalCrop {
    height: u32,
    rounding: &'static str,
    width: u32,
}

#[derive(Serialize)]
struct CanonicalDecode {
    #[serde(skip_serializing_if = "Option::is_none")]
    fast_tenths: Option<u64>,
    max_frames: u32,
    max_views: u32,
    version: u32,
}

/// One kind of resize. The fields that a kind does not use are left out.
#[derive(Serialize, Default)]
struct CanonicalResize {
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fill: Option<[u8; 3]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    longest: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
}

impl From<Resize> for CanonicalResize {
    fn from(resize: Resize) -> Self {
        let sized = |kind, width, height| Self { kind, width: Some(width), height: Some(height), ..Self::default() };
        match resize {
            Resize::None => Self { kind: "none", ..Self::default() },
            Resize::Exact { width, height } => sized("exact", width, height),
            Resize::ShortestEdge(edge) => Self { kind: "shortest_edge", edge: Some(edge), ..Self::default() },
            Resize::ShortestEdgeWithin { edge, longest } => {
                Self { kind: "shortest_edge_within", edge: Some(edge), longest: Some(longest), ..Self::default() }
            }
            Resize::Cover { width, height } => sized("cover", width, height),
            Resize::Fit { width, height, fill } => Self { fill: Some(fill), ..sized("fit", width, height) },
        }
    }
}

impl DigestInput<'_> {
    /// The canonical text.
    pub(super) fn text(&self) -> String {
        let Self { geometry, normalisation, decode, .. } = self;
        canonical::text(&Canonical {
            axes: self.axes.map(|axes| match axes {
                Axes::Nchw => "nchw",
                Axes::Nhwc => "nhwc",
            }),
            calibration: self.calibration.map(Into::into),
            channels: match normalisation.channels {
                Channels::Rgb => None,
                Channels::Bgr => Some("bgr"),
            },
            crop: CanonicalCrop {
                height: geometry.height,
                rounding: match geometry.rounding {
                    CropRounding::Down => "down",
                    CropRounding::HalfToEven => "half_to_even",
                },
                width: geometry.width,
            },
            decode: CanonicalDecode {
                fast_tenths: decode.fast_tenths,
                max_frames: decode.max_frames,
                max_views: decode.max_views,
                version: decode.version,
            },
            filter: match geometry.filter {
                ResampleFilter::Nearest => "nearest",
                ResampleFilter::Lanczos => "lanczos",
                ResampleFilter::Bilinear => "bilinear",
                ResampleFilter::Bicubic => "bicubic",
                ResampleFilter::Box => "box",
                ResampleFilter::Hamming => "hamming",
            },
            labels: self.labels,
            mean: normalisation.mean.map(without_negative_zero),
            model: self.model_sha256,
            multi_label: self.multi_label,
            output: self.activation.map(|activation| match activation {
                Activation::Softmax => "softmax",
                Activation::Sigmoid => "sigmoid",
                Activation::Identity => "identity",
            }),
            resize: geometry.resize.into(),
            scale: normalisation.scale,
            std: normalisation.std,
            version: VERSION,
        })
    }

    /// The digest, hexadecimal.
    pub(super) fn sha256(&self) -> String {
        canonical::sha256(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::tests::assert_sorted;

    fn labels() -> [String; 2] {
        ["by human".into(), "by AI".into()]
    }

    fn input(labels: &[String]) -> DigestInput<'_> {
        DigestInput {
            model_sha256: "00ff",
            labels,
            geometry: Geometry {
                resize: Resize::Exact { width: 32, height: 24 },
                filter: ResampleFilter::Bicubic,
                width: 32,
                height: 24,
                rounding: CropRounding::HalfToEven,
            },
            normalisation: Normalisation {
                scale: 1.0 / 255.0,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                channels: Channels::Rgb,
            },
            axes: None,
            activation: None,
            multi_label: false,
            calibration: None,
            decode: DecodeSettings { version: 1, max_frames: 4, max_views: 12, fast_tenths: None },
        }
    }

    /// These values may change only together with what they cover: stored scores are found by them.
    #[test]
    fn the_canonical_form_of_a_detector_is_pinned_by_value() {
        let labels = labels();
        let usual = input(&labels);
        assert_eq!(
            usual.text(),
            concat!(
                r#"{"crop":{"height":24,"rounding":"half_to_even","width":32},"decode":{"max_frames":4,"max_views":12,"version":1},"#,
                r#""filter":"bicubic","labels":["by human","by AI"],"mean":[0.485,0.456,0.406],"model":"00ff","#,
                r#""resize":{"height":24,"kind":"exact","width":32},"scale":0.003921569,"#,
                r#""std":[0.229,0.224,0.225],"version":1}"#
            )
        );
        assert_eq!(usual.sha256(), "ec69916617a53f202a12818802b5086e79af5e30bf2f7eb413d4a2ba5466cffc");

        let fit = Resize::Fit { width: 32, height: 24, fill: [1, 2, 3] };
        let unusual = DigestInput {
            geometry: Geometry { resize: fit, ..usual.geometry },
            normalisation: Normalisation { channels: Channels::Bgr, mean: [-0.0; 3], ..usual.normalisation },
            activation: Some(Activation::Sigmoid),
            multi_label: true,
            decode: DecodeSettings { fast_tenths: Some(19), ..usual.decode },
            ..input(&labels)
        };
        assert_eq!(
            unusual.text(),
            concat!(
                r#"{"channels":"bgr","crop":{"height":24,"rounding":"half_to_even","width":32},"#,
                r#""decode":{"fast_tenths":19,"max_frames":4,"max_views":12,"version":1},"filter":"bicubic","#,
                r#""labels":["by human","by AI"],"mean":[0.0,0.0,0.0],"model":"00ff","multi_label":true,"#,
                r#""output":"sigmoid","resize":{"fill":[1,2,3],"height":24,"kind":"fit","width":32},"#,
                r#""scale":0.003921569,"std":[0.229,0.224,0.225],"version":1}"#
            )
        );
        assert_eq!(unusual.sha256(), "3a3d4f4f49403fa2d715803150fc6540beb968e6d3e26e1367e909acc90f3d99");
        assert_sorted(&usual.text());
        assert_sorted(&unusual.text());
    }

    /// As above: a value that stored scores are found by.
    #[test]
    fn the_canonical_form_of_a_layout_and_a_calibration_is_pinned_by_value() {
        let labels = labels();
        let text = |calibration: &str| {
            let fields = serde_json::from_str(calibration).unwrap();
            let calibration = ScoreCalibration::read(&fields, &labels).unwrap();
            DigestInput { axes: Some(Axes::Nhwc), calibration: Some(&calibration), ..input(&labels) }.text()
        };
        let rest = r#","crop":{"height":24,"#;
        let temperature = text(r#"{"method": "temperature", "temperature": 1.5}"#);
        let begins = format!(r#"{{"axes":"nhwc","calibration":{{"temperature":1.5}}{rest}"#);
        assert!(temperature.starts_with(&begins), "{temperature}");
        let isotonic =
            text(r#"{"method": "isotonic", "labels": {"by AI": {"scores": [0, 0.5], "probabilities": [0, 1]}}}"#);
        let begins = format!(r#"{{"axes":"nhwc","calibration":{{"isotonic":[null,[[0.0,0.0],[0.5,1.0]]]}}{rest}"#);
        assert!(isotonic.starts_with(&begins), "{isotonic}");
        assert_sorted(&temperature);
        assert_sorted(&isotonic);
    }

    #[test]
    fn whatever_changes_scores_changes_the_digest() {
        let labels = labels();
        let calibrations = [ScoreCalibration::Temperature(1.5), ScoreCalibration::Temperature(1.6)];
        let swapped = [labels[1].clone(), labels[0].clone()];
        let usual = input(&labels);
        let with_geometry = |geometry| DigestInput { geometry, ..input(&labels) };
        let with_normalisation = |normalisation| DigestInput { normalisation, ..input(&labels) };
        let with_decode = |decode| DigestInput { decode, ..input(&labels) };
        let (geometry, normalisation, decode) = (usual.geometry, usual.normalisation, usual.decode);
        let mut texts = vec![
            usual.text(),
            DigestInput { model_sha256: "00fe", ..input(&labels) }.text(),
            input(&swapped).text(),
            DigestInput { multi_label: true, ..input(&labels) }.text(),
            DigestInput { axes: Some(Axes::Nhwc), ..input(&labels) }.text(),
            DigestInput { axes: Some(Axes::Nchw), ..input(&labels) }.text(),
            with_geometry(Geometry { width: 31, ..geometry }).text(),
            with_geometry(Geometry { height: 31, ..geometry }).text(),
            with_geometry(Geometry { rounding: CropRounding::Down, ..geometry }).text(),
            with_normalisation(Normalisation { scale: 1.0, ..normalisation }).text(),
            with_normalisation(Normalisation { mean: [0.5; 3], ..normalisation }).text(),
            with_normalisation(Normalisation { std: [0.5; 3], ..normalisation }).text(),
            with_normalisation(Normalisation { channels: Channels::Bgr, ..normalisation }).text(),
            DigestInput { calibration: Some(&calibrations[0]), ..input(&labels) }.text(),
            DigestInput { calibration: Some(&calibrations[1]), ..input(&labels) }.text(),
            with_decode(DecodeSettings { version: 2, ..decode }).text(),
            with_decode(DecodeSettings { max_frames: 5, ..decode }).text(),
            with_decode(DecodeSettings { max_views: 5, ..decode }).text(),
            with_decode(DecodeSettings { fast_tenths: Some(19), ..decode }).text(),
        ];
        let (width, height) = (32, 24);
        texts.extend(
            [
                Resize::None,
                Resize::ShortestEdge(32),
                Resize::ShortestEdgeWithin { edge: 32, longest: 64 },
                Resize::Cover { width, height },
                Resize::Fit { width, height, fill: [0; 3] },
                Resize::Fit { width, height, fill: [9; 3] },
            ]
            .map(|resize| with_geometry(Geometry { resize, ..geometry }).text()),
        );
        texts.extend(
            [
                ResampleFilter::Nearest,
                ResampleFilter::Lanczos,
                ResampleFilter::Bilinear,
                ResampleFilter::Box,
                ResampleFilter::Hamming,
            ]
            .map(|filter| with_geometry(Geometry { filter, ..geometry }).text()),
        );
        texts.extend(
            [Activation::Softmax, Activation::Sigmoid, Activation::Identity]
                .map(|activation| DigestInput { activation: Some(activation), ..input(&labels) }.text()),
        );
        let count = texts.len();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }
}
