//! The same figures for groups of images: by format, by size, by compression, by dataset.
//!
//! A detector can learn what its training images have in common instead of what they show: files of one format, of one
//! size, saved at one quality. It looks good wherever labels go with such a property, and fails elsewhere. Two figures
//! show it: how well the property alone tells the labels apart, and the ROC AUC among images that share it.

use std::collections::BTreeMap;

use super::metrics::{ClassCounts, Curve, ScoredImage, share, wilson_interval};

/// A property by which images are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SliceProperty {
    Format,
    Size,
    Compression,
    Dataset,
}

impl SliceProperty {
    pub const ALL: [Self; 4] = [Self::Format, Self::Size, Self::Compression, Self::Dataset];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Size => "size",
            Self::Compression => "compression",
            Self::Dataset => "dataset",
        }
    }
}

/// The longer side, in pixels: each class goes up to its number.
const SIZE_CLASSES: [(u32, &str); 5] =
    [(256, "up to 256"), (512, "257 to 512"), (1024, "513 to 1024"), (2048, "1025 to 2048"), (4096, "2049 to 4096")];
const LARGEST_SIZE: &str = "over 4096";

/// Bits of the file per pixel of the first frame: each class ends below its number. It stands for the quality at which a
/// file was saved, which only JPEG files name.
const COMPRESSION_CLASSES: [(f64, &str); 5] = [
    (0.5, "under 0.5 bits/px"),
    (1.0, "0.5 to 1 bits/px"),
    (2.0, "1 to 2 bits/px"),
    (4.0, "2 to 4 bits/px"),
    (8.0, "4 to 8 bits/px"),
];
const LEAST_COMPRESSED: &str = "8 or more bits/px";

/// What an image is grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageProperties {
    pub format: &'static str,
    /// Position in [`SIZE_CLASSES`]; one more for larger images.
    size: usize,
    /// Position in [`COMPRESSION_CLASSES`]; one more for files with more bits.
    compression: usize,
    /// Index of the dataset.
    pub dataset: usize,
}

impl ImageProperties {
    #[must_use]
    pub fn new(format: &'static str, [width, height]: [u32; 2], bytes: u64, dataset: usize) -> Self {
        let side = width.max(height);
        #[expect(clippy::cast_precision_loss, reason = "sizes of files are far below 2^53")]
        let bits_per_pixel = 8.0 * bytes as f64 / (f64::from(width) * f64::from(height)).max(1.0);
        Self {
            format,
            size: SIZE_CLASSES.partition_point(|(largest, _)| *largest < side),
            compression: COMPRESSION_CLASSES.partition_point(|(end, _)| *end <= bits_per_pixel),
            dataset,
        }
    }
}

/// An image's score with what it is grouped by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlicedImage {
    pub image: ScoredImage,
    pub properties: ImageProperties,
}

/// The images of one group.
#[derive(Debug, Clone)]
pub struct Slice {
    pub property: SliceProperty,
    /// The format, the class of sizes, the name of the dataset.
    pub name: String,
    pub curve: Curve,
}

impl Slice {
    #[must_use]
    pub fn images(&self) -> ClassCounts {
        self.curve.total()
    }

    /// The share of correctly classified images.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        share(self.curve.correct(), self.images().images())
    }

    /// What the accuracy may be on other images like these, with 95 % confidence.
    #[must_use]
    pub fn accuracy_interval(&self) -> Option<(f64, f64)> {
        wilson_interval(self.curve.correct(), self.images().images())
    }
}

/// All groups, property by property, each in the order of its classes. A property that all images share makes one group.
#[must_use]
pub fn slices(images: &[SlicedImage], datasets: &[String]) -> Vec<Slice> {
    SliceProperty::ALL.into_iter().flat_map(|property| slices_by(property, images, datasets)).collect()
}

fn slices_by(property: SliceProperty, images: &[SlicedImage], datasets: &[String]) -> Vec<Slice> {
    // The position keeps classes in order; formats have none and are ordered by name.
    let mut groups: BTreeMap<(usize, &str), Vec<ScoredImage>> = BTreeMap::new();
    for SlicedImage { image, properties } in images {
        let ImageProperties { format, size, compression, dataset } = *properties;
        let key = match property {
            SliceProperty::Format => (0, format),
            SliceProperty::Size => (size, SIZE_CLASSES.get(size).map_or(LARGEST_SIZE, |class| class.1)),
            SliceProperty::Compression => {
                (compression, COMPRESSION_CLASSES.get(compression).map_or(LEAST_COMPRESSED, |class| class.1))
            }
            SliceProperty::Dataset => (dataset, datasets[dataset].as_str()),
        };
        groups.entry(key).or_default().push(*image);
    }
    groups
        .into_iter()
        .map(|((_, name), images)| Slice { property, name: name.to_owned(), curve: Curve::new(images) })
        .collect()
}

/// How one property goes with the labels, and what is left of a detector among images that share it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PropertyFigures {
    pub property: SliceProperty,
    /// The ROC AUC of a detector that knows only this property of an image, and gives each group its share of positive
    /// images. 0.5 where the property says nothing of the label.
    pub roc_auc_of_property: Option<f64>,
    /// The share of pairs of a positive and a negative image of one group in which the positive one scores higher, ties
    /// counting half. `None` where no group has both.
    pub roc_auc_within: Option<f64>,
    /// The number of these pairs.
    pub pairs_within: f64,
}

/// The figures of each property that divides the images.
#[must_use]
pub fn property_figures(slices: &[Slice]) -> Vec<PropertyFigures> {
    let by_property = SliceProperty::ALL.map(|property| {
        let groups: Vec<&Slice> = slices.iter().filter(|slice| slice.property == property).collect();
        (groups.len() > 1).then(|| figures_of(property, &groups))
    });
    by_property.into_iter().flatten().collect()
}

fn figures_of(property: SliceProperty, groups: &[&Slice]) -> PropertyFigures {
    #[expect(clippy::cast_precision_loss, reason = "counts of images stay far below 2^53")]
    let count = |images: u64| images as f64;
    let pairs = |slice: &&Slice| count(slice.images().positives) * count(slice.images().negatives);
    let pairs_within: f64 = groups.iter().map(pairs).sum();
    let in_order: f64 = groups.iter().filter_map(|slice| Some(pairs(slice) * slice.curve.roc_auc()?)).sum();

    let mut by_share: Vec<(f64, ClassCounts)> =
        groups.iter().filter_map(|slice| Some((slice.images().precision()?, slice.images()))).collect();
    by_share.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut negatives_below, mut positives, mut ordered) = (0.0, 0.0, 0.0);
    for (_, images) in by_share {
        ordered += count(images.positives) * (negatives_below + count(images.negatives) / 2.0);
        negatives_below += count(images.negatives);
        positives += count(images.positives);
    }
    let all_pairs = positives * negatives_below;
    PropertyFigures {
        property,
        roc_auc_of_property: (all_pairs > 0.0).then(|| ordered / all_pairs),
        roc_auc_within: (pairs_within > 0.0).then(|| in_order / pairs_within),
        pairs_within,
    }
}

/// A property that alone reaches this ROC AUC tells the labels apart.
const TELLING_AUC: f64 = 0.7;
/// A ROC AUC that falls by more than this among images of one group is worth a caution.
const NOTABLE_FALL: f64 = 0.05;
/// Groups of fewer images are not compared: their intervals are too wide to say anything.
const MIN_IMAGES: u64 = 20;

/// What the groups say against the figures over all images.
#[must_use]
pub fn cautions(slices: &[Slice], roc_auc: Option<f64>) -> Vec<String> {
    property_figures(slices)
        .into_iter()
        .flat_map(|figures| {
            let by_property = slices.iter().filter(move |slice| slice.property == figures.property);
            // Datasets often have one class each, and a difference between them is what the first table shows.
            let groups: Vec<&Slice> = by_property.collect();
            let differ = (figures.property != SliceProperty::Dataset).then(|| caution_of_difference(&groups)).flatten();
            caution_of_property(&figures, roc_auc).into_iter().chain(differ)
        })
        .collect()
}

/// The labels go with the property.
fn caution_of_property(figures: &PropertyFigures, roc_auc: Option<f64>) -> Option<String> {
    let name = figures.property.as_str();
    let within = figures.roc_auc_within;
    let falls = within.zip(roc_auc).is_some_and(|(within, all)| all - within > NOTABLE_FALL);
    let telling = figures.roc_auc_of_property.filter(|area| *area >= TELLING_AUC);
    let found = match within {
        Some(within) => format!("among images of the same {name} the detector's ROC AUC is {within:.4}"),
        None => format!("no {name} has images of both classes"),
    };
    match (telling, falls) {
        (Some(telling), _) => Some(format!(
            "the {name} alone tells the labels apart (ROC AUC {telling:.4}); {found}; a detector that reads the {name} instead of the content would look good here: use images whose {name} does not go with the label"
        )),
        (None, true) => Some(format!("{found}, of all images it is {:.4}", roc_auc.unwrap_or_default())),
        (None, false) => None,
    }
}

/// Two groups whose accuracy differs by more than chance.
fn caution_of_difference(groups: &[&Slice]) -> Option<String> {
    let mut measured: Vec<(&Slice, f64, (f64, f64))> = groups
        .iter()
        .filter(|slice| slice.images().images() >= MIN_IMAGES)
        .filter_map(|slice| Some((*slice, slice.accuracy()?, slice.accuracy_interval()?)))
        .collect();
    measured.sort_by(|a, b| a.1.total_cmp(&b.1));
    let ((worst, low_share, low), (best, high_share, high)) = (measured.first()?, measured.last()?);
    (low.1 < high.0).then(|| {
        format!(
            "accuracy differs by {}: {low_share:.4} for {} ({:.4} to {:.4}), {high_share:.4} for {} ({:.4} to {:.4})",
            worst.property.as_str(),
            worst.name,
            low.0,
            low.1,
            best.name,
            high.0,
            high.1,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(score: f32, positive: bool, format: &'static str) -> SlicedImage {
        let properties = ImageProperties::new(format, [100, 100], 10_000, 0);
        SlicedImage { image: ScoredImage { score, positive }, properties }
    }

    /// PNG files are mostly positive and JPEG files mostly negative.
    fn unequal(score: impl Fn(u8, bool, &'static str) -> f32) -> Vec<SlicedImage> {
        let groups = [("png", true, 90), ("png", false, 10), ("jpeg", true, 10), ("jpeg", false, 90)];
        let images = groups.into_iter().flat_map(|(format, positive, count)| {
            let score = &score;
            (0..count).map(move |i| image(score(i, positive, format), positive, format))
        });
        images.collect()
    }

    fn all_cautions(images: &[SlicedImage]) -> Vec<String> {
        let roc_auc = Curve::new(images.iter().map(|sliced| sliced.image)).roc_auc();
        cautions(&slices(images, &["d".into()]), roc_auc)
    }

    #[test]
    fn a_detector_that_reads_the_format_is_found_out() {
        let images = unequal(|i, _, format| if format == "png" { 0.8 } else { 0.2 } + f32::from(i % 10) / 100.0);
        let overall = Curve::new(images.iter().map(|sliced| sliced.image)).roc_auc().unwrap();
        assert!(overall > 0.88, "it looks good: {overall}");
        let found = all_cautions(&images);
        assert_eq!(found.len(), 1, "{found:?}");
        let expected = "the format alone tells the labels apart (ROC AUC 0.9000); among images of the same format the detector's ROC AUC is 0.5000;";
        assert!(found[0].starts_with(expected), "{found:?}");
    }

    #[test]
    fn groups_without_both_classes_say_so() {
        let images: Vec<_> = (0..50u8)
            .map(|i| image(f32::from(i) / 50.0, i % 2 == 0, if i % 2 == 0 { "png" } else { "jpeg" }))
            .collect();
        let found = all_cautions(&images);
        assert!(found[0].contains("(ROC AUC 1.0000); no format has images of both classes;"), "{found:?}");
    }

    #[test]
    fn labels_that_do_not_go_with_the_format_get_no_caution() {
        let images: Vec<_> = (0..200u8)
            .map(|i| {
                let positive = i % 2 == 0;
                image(if positive { 0.9 } else { 0.1 }, positive, if i % 4 < 2 { "png" } else { "jpeg" })
            })
            .collect();
        assert_eq!(all_cautions(&images), Vec::<String>::new());
        let figures = property_figures(&slices(&images, &["d".into()]));
        assert_eq!(figures.len(), 1, "one size, one compression and one dataset divide nothing");
        assert_eq!((figures[0].roc_auc_of_property, figures[0].roc_auc_within), (Some(0.5), Some(1.0)));
    }

    #[test]
    fn a_format_in_which_the_detector_is_worse_is_named() {
        let images: Vec<_> = (0..200u8)
            .map(|i| {
                let (positive, png) = (i % 2 == 0, i % 4 < 2);
                let wrong = png && i % 3 == 0;
                image(if positive == wrong { 0.1 } else { 0.9 }, positive, if png { "png" } else { "jpeg" })
            })
            .collect();
        let found = all_cautions(&images);
        assert!(
            found.iter().any(|words| words
                .starts_with("accuracy differs by format: 0.6700 for png (0.5731 to 0.7544), 1.0000 for jpeg (")),
            "{found:?}"
        );
    }

    #[test]
    fn classes_end_where_their_names_say() {
        let found = |side: u32, bytes: u64| {
            let properties = ImageProperties::new("png", [side, side / 2], bytes, 0);
            let sliced = SlicedImage { image: ScoredImage { score: 0.5, positive: true }, properties };
            slices(&[sliced], &["d".into()]).into_iter().map(|slice| slice.name).collect::<Vec<_>>()
        };
        // 256 × 128 pixels: 2,048 bytes are half a bit per pixel.
        assert_eq!(found(256, 2047)[1..3], ["up to 256", "under 0.5 bits/px"]);
        assert_eq!(found(256, 2048)[1..3], ["up to 256", "0.5 to 1 bits/px"]);
        assert_eq!(found(257, 9000)[1], "257 to 512");
        assert_eq!(found(4097, u64::MAX / 16)[1..3], ["over 4096", "8 or more bits/px"]);
    }
}
