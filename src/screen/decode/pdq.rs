//! Pixels → a perceptual hash: Meta's PDQ, with its quality.
//!
//! The algorithm is "The PDQ image similarity hashing algorithm" (facebook/ThreatExchange, `hashing/hashing.pdf`), and its
//! reference is the C++ code beside it. A picture is reduced to 64x64 values of luma by a filter, which are transformed to
//! 16x16 frequencies. Each bit of the hash tells whether a frequency is above the median.
//!
//! The reference filters the whole picture. Here only the 64x64 values are computed, with the weights that the same filter
//! gives to the pixels around them. That reads each pixel about once, needs the memory of one line, and depends on no
//! detector. It differs from the reference by the rounding of float32, which decides a bit where two frequencies are
//! nearly equal. A picture of at most 512x512 pixels for which that could be is filtered as a whole, with the reference's
//! operations in their order. `docs/banks.md` has how far the hashes are from the reference's.

use std::ops::Range;
use std::sync::LazyLock;

use crate::job::Pdq;

/// Values along each axis of the reduced picture.
const REDUCED: usize = 64;
/// Frequencies along each axis, from 1 on.
const FREQUENCIES: usize = 16;
/// The longest side of a picture that is filtered as a whole.
const MAX_WHOLE_SIDE: usize = 512;
/// The reference hashes no picture with a shorter side: it has no bit, and a quality of 0.
const MIN_SIDE: usize = 5;
/// The lower one of the two frequencies in the middle.
const MEDIAN: usize = FREQUENCIES * FREQUENCIES / 2 - 1;
/// Rounding changed frequencies of photographs by 0.006 at most.
const MAX_FREQUENCY_ERROR: f32 = 0.02;
/// And steps between neighbouring values, in hundredths of the full range, by 0.001.
const MAX_STEP_ERROR: f32 = 0.002;
/// Lines that are filtered together, so that the compiler uses vectors.
const LANES: usize = 8;
/// The largest window of which sums of weighted samples are exact in float32: 255 times its square is below 2^24.
const MAX_TENT_WINDOW: u16 = 256;
/// The sum of weights that samples of 8 bits fill 16 bits with.
const MAX_WORD_WEIGHT: u16 = 257;
/// Samples of a line that are summed at a time, so that the sums stay in the processor's nearest cache.
const STRIP: usize = 2048;

/// `[64, 64]`, line by line.
type Reduced = [[f32; REDUCED]; REDUCED];
/// `[16, 16]`: down, and across.
type Frequencies = [[f32; FREQUENCIES]; FREQUENCIES];

/// Hashes a picture, `[⌈height / shrunk⌉, ⌈width / shrunk⌉, 3] u8` in sRGB: its decoder may have shrunk it by that factor.
/// Returns the hash and its quality, 0 to 100.
#[must_use]
pub fn hash(rgb: &[u8], (width, height): (u32, u32), shrunk: u32) -> (Pdq, u8) {
    let (width, height, shrunk) = (width as usize, height as usize, shrunk as usize);
    if width < MIN_SIDE || height < MIN_SIDE {
        return (Pdq([0; 32]), 0);
    }
    let reduced = filter_samples(rgb, (width, height), shrunk);
    let found = frequencies(&reduced);
    if shrunk == 1 && width.max(height) <= MAX_WHOLE_SIDE && is_decided_by_rounding(&reduced, &found) {
        let reduced = filter_whole(rgb, width, height);
        return (bits(&frequencies(&reduced)), quality(&reduced));
    }
    (bits(&found), quality(&reduced))
}

/// Whether the reference may have found another hash or quality because its sums are rounded to float32.
fn is_decided_by_rounding(reduced: &Reduced, frequencies: &Frequencies) -> bool {
    let (mut certain, mut all) = (0, 0);
    for step in steps(reduced) {
        certain += whole((step - MAX_STEP_ERROR).max(0.0));
        all += whole(step + MAX_STEP_ERROR);
    }
    let sorted = sorted(frequencies);
    sorted[MEDIAN] - sorted[MEDIAN - 1] < MAX_FREQUENCY_ERROR
        || sorted[MEDIAN + 1] - sorted[MEDIAN] < MAX_FREQUENCY_ERROR
        || quality_of(certain) != quality_of(all)
}

/// The window of the filter along an axis. Its two passes together reach over one of 64 parts.
fn window(length: usize) -> usize {
    length.div_ceil(2 * REDUCED)
}

/// The pixel at the centre of each of 64 parts of an axis.
fn centres(length: usize) -> impl Iterator<Item = usize> {
    (0..REDUCED).map(move |part| (2 * part + 1) * length / (2 * REDUCED))
}

/// The pixels whose mean a pass of the filter gives to a pixel. An even window reaches further to the end.
fn reach(at: usize, length: usize) -> Range<usize> {
    let window = window(length);
    let ahead = (window + 2) / 2;
    (at + ahead).saturating_sub(window)..(at + ahead).min(length)
}

/// Luma, `[height, width] f32`.
struct Luma {
    values: Vec<f32>,
    width: usize,
    height: usize,
}

fn filter_whole(rgb: &[u8], width: usize, height: usize) -> Reduced {
    let mut picture = Luma { values: rgb.as_chunks().0.iter().map(luma).collect(), width, height };
    // The reference takes such a picture as reduced.
    if (width, height) != (REDUCED, REDUCED) {
        let (columns, lines): (Vec<_>, Vec<_>) = (centres(width).collect(), centres(height).collect());
        picture = picture.filter_across(&(0..width).collect::<Vec<_>>()).filter_down(&(0..height).collect::<Vec<_>>());
        picture = picture.filter_across(&columns).filter_down(&lines);
    }
    let mut reduced = [[0.0; REDUCED]; REDUCED];
    for (to, from) in reduced.iter_mut().zip(picture.values.chunks_exact(REDUCED)) {
        to.copy_from_slice(from);
    }
    reduced
}

impl Luma {
    /// A pass of the filter along each line, of which these columns are kept.
    fn filter_across(&self, columns: &[usize]) -> Self {
        let mut values = vec![0.0; columns.len() * self.height];
        let mut block = vec![[0.0; LANES]; self.width];
        let mut means = block.clone();
        let lines = self.values.chunks(LANES * self.width).zip(values.chunks_mut(LANES * columns.len()));
        for (from, to) in lines {
            for (lane, line) in from.chunks_exact(self.width).enumerate() {
                block.iter_mut().zip(line).for_each(|(block, value)| block[lane] = *value);
            }
            running_means(&block, &mut means);
            for (lane, line) in to.chunks_exact_mut(columns.len()).enumerate() {
                line.iter_mut().zip(columns).for_each(|(value, column)| *value = means[*column][lane]);
            }
        }
        Self { values, width: columns.len(), height: self.height }
    }

    /// A pass of the filter along each column, of which these lines are kept.
    fn filter_down(&self, lines: &[usize]) -> Self {
        let width = self.width;
        let mut values = vec![0.0; width * lines.len()];
        let mut block = vec![[0.0; LANES]; self.height];
        let mut means = block.clone();
        for first in (0..width).step_by(LANES) {
            let count = LANES.min(width - first);
            for (block, line) in block.iter_mut().zip(self.values.chunks_exact(width)) {
                block[..count].copy_from_slice(&line[first..first + count]);
            }
            running_means(&block, &mut means);
            for (to, line) in values.chunks_exact_mut(width).zip(lines) {
                to[first..first + count].copy_from_slice(&means[*line][..count]);
            }
        }
        Self { values, width, height: lines.len() }
    }
}

/// The means of each value's reach, by a running sum: first what enters the reach is added, then what leaves it is
/// subtracted.
fn running_means(values: &[[f32; LANES]], means: &mut [[f32; LANES]]) {
    let (mut sum, mut before) = ([0.0f32; LANES], 0..0);
    for (at, mean) in means.iter_mut().enumerate() {
        let now = reach(at, values.len());
        let count = to_f32(now.len());
        match (&values[before.end..now.end], &values[before.start..now.start]) {
            // All but the first and the last values.
            ([entering], [leaving]) => sum = std::array::from_fn(|lane| sum[lane] + entering[lane] - leaving[lane]),
            (entering, leaving) => {
                entering.iter().for_each(|entering| sum = std::array::from_fn(|lane| sum[lane] + entering[lane]));
                leaving.iter().for_each(|leaving| sum = std::array::from_fn(|lane| sum[lane] - leaving[lane]));
            }
        }
        *mean = sum.map(|sum| sum / count);
        before = now;
    }
}

/// The weights of consecutive pixels of an axis.
struct Weights {
    first: usize,
    weights: Vec<f32>,
    /// The window, where the axis was not shrunk and its end cuts no pass: then the weights are 1, 2, 3 up to the window and back to 1, over
    /// the square of the window.
    tent: Option<u16>,
}

/// What both passes of the filter take of an axis for the centre of each part. Of an axis that was shrunk each value stands for
/// as many pixels as there were, so that the picture has nearly the hash that it had before.
fn weights(length: usize, shrunk: usize) -> Vec<Weights> {
    let of_centre = |centre: usize| {
        let second = reach(centre, length);
        let (begin, end) = (reach(second.start, length).start, reach(second.end - 1, length).end);
        let first = begin / shrunk;
        let mut weights = vec![0.0; (end - 1) / shrunk + 1 - first];
        for at in second.clone() {
            let pass = reach(at, length);
            let share = 1.0 / to_f32(second.len()) / to_f32(pass.len());
            pass.for_each(|pixel| weights[pixel / shrunk - first] += share);
        }
        let window = window(length);
        let is_whole = shrunk == 1 && second.len() == window && end - begin == 2 * window - 1;
        let tent = u16::try_from(window).ok().filter(|window| is_whole && *window <= MAX_TENT_WINDOW);
        Weights { first, weights, tent }
    };
    centres(length).map(of_centre).collect()
}

fn filter_samples(rgb: &[u8], (width, height): (usize, usize), shrunk: usize) -> Reduced {
    let (across, down) = (weights(width, shrunk), weights(height, shrunk));
    let width = width.div_ceil(shrunk);
    let mut reduced = [[0.0; REDUCED]; REDUCED];
    let mut mean_line = vec![0.0f32; 3 * width];
    for (line, down) in reduced.iter_mut().zip(&down) {
        mean_line.fill(0.0);
        let lines = || rgb.chunks_exact(3 * width).skip(down.first);
        match down.tent {
            Some(window) => add_tent(lines, window, &mut mean_line),
            None => {
                for (weight, from) in down.weights.iter().zip(lines()) {
                    mean_line.iter_mut().zip(from).for_each(|(sum, sample)| *sum += weight * f32::from(*sample));
                }
            }
        }
        let (pixels, _) = mean_line.as_chunks::<3>();
        for (value, Weights { first, weights, .. }) in line.iter_mut().zip(&across) {
            let add = |[red, green, blue]: [f32; 3], (weight, pixel): (&f32, &[f32; 3])| {
                [red + weight * pixel[0], green + weight * pixel[1], blue + weight * pixel[2]]
            };
            *value = luma_of_means(weights.iter().zip(&pixels[*first..]).fold([0.0; 3], add).map(f64::from));
        }
    }
    reduced
}

/// Makes the mean of the lines with the weights of a tent, exactly: sums of 16 bits, which the compiler's vectors hold eight
/// of, go into float32 before they overflow.
fn add_tent<'a, L: Iterator<Item = &'a [u8]>>(lines: impl Fn() -> L, window: u16, mean_line: &mut [f32]) {
    let weights = (1..=window).chain((1..window).rev());
    let mut words = [0u16; STRIP];
    for (strip, means) in mean_line.chunks_mut(STRIP).enumerate() {
        let words = &mut words[..means.len()];
        let mut weight_in_words = 0;
        let mut flush = |words: &mut [u16]| {
            for (mean, word) in means.iter_mut().zip(words) {
                *mean += f32::from(std::mem::take(word));
            }
        };
        for (weight, line) in weights.clone().zip(lines()) {
            if weight_in_words + weight > MAX_WORD_WEIGHT {
                flush(words);
                weight_in_words = 0;
            }
            for (word, sample) in words.iter_mut().zip(&line[strip * STRIP..]) {
                *word += weight * u16::from(*sample);
            }
            weight_in_words += weight;
        }
        flush(words);
        let square = f32::from(window) * f32::from(window);
        means.iter_mut().for_each(|mean| *mean /= square);
    }
}

/// The luma of a pixel. `pdqhash` computes `0.299 r + 0.587 g + 0.114 b` in float64 and rounds the sum to float32. This gives
/// the same float32: the sum is whole thousandths, of which none lies as near to the middle of two float32s as float64 may
/// be wrong.
fn luma(pixel: &[u8; 3]) -> f32 {
    let thousandths = 299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2]);
    #[expect(clippy::cast_precision_loss, reason = "at most 255,000")]
    let thousandths = thousandths as f32;
    thousandths / 1000.0
}

#[expect(clippy::cast_possible_truncation, reason = "the reference goes on in float32")]
fn luma_of_means([red, green, blue]: [f64; 3]) -> f32 {
    (red * 0.299 + green * 0.587 + blue * 0.114) as f32
}

/// From 0 to 100: how much neighbouring values differ, in whole hundredths of the full range. Smaller differences do not
/// count.
fn quality(reduced: &Reduced) -> u8 {
    quality_of(steps(reduced).map(whole).sum())
}

fn quality_of(steps: u32) -> u8 {
    u8::try_from(steps / 90).unwrap_or(u8::MAX).min(100)
}

/// How much each value differs from the next one down and across, in hundredths of the full range.
fn steps(reduced: &Reduced) -> impl Iterator<Item = f32> {
    let down = reduced.windows(2).flat_map(|lines| lines[0].iter().zip(&lines[1]));
    let across = reduced.iter().flat_map(|line| line.iter().zip(&line[1..]));
    down.chain(across).map(|(one, other)| ((one - other) * 100.0 / 255.0).abs())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 100")]
fn whole(step: f32) -> u32 {
    step as u32
}

/// The discrete cosine transform's rows of the frequencies 1 to 16.
#[expect(clippy::cast_possible_truncation, reason = "the reference goes on in float32")]
static COSINES: LazyLock<[[f32; REDUCED]; FREQUENCIES]> = LazyLock::new(|| {
    let scale = f64::from((2.0 / 64.0f64).sqrt() as f32);
    let angle = std::f64::consts::PI / 2.0 / 64.0;
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            (scale * (angle * f64::from(to_f32(i + 1)) * f64::from(to_f32(2 * j + 1))).cos()) as f32
        })
    })
});

/// Each sum is made in the order of the reduced picture's lines and columns.
fn frequencies(reduced: &Reduced) -> Frequencies {
    let mut down = [[0.0f32; REDUCED]; FREQUENCIES];
    for (down, cosines) in down.iter_mut().zip(COSINES.iter()) {
        for (cosine, line) in cosines.iter().zip(reduced) {
            down.iter_mut().zip(line).for_each(|(sum, value)| *sum += cosine * value);
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            // Not sum(), which begins with -0.0.
            down[i].iter().zip(&COSINES[j]).fold(0.0, |sum, (value, cosine)| sum + value * cosine)
        })
    })
}

fn sorted(frequencies: &Frequencies) -> Vec<f32> {
    let mut sorted = frequencies.as_flattened().to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted
}

/// A bit for each frequency that is above the median.
fn bits(frequencies: &Frequencies) -> Pdq {
    let median = sorted(frequencies)[MEDIAN];
    let mut hash = Pdq([0; 32]);
    for (bit, _) in (0..).zip(frequencies.as_flattened()).filter(|(_, frequency)| **frequency > median) {
        hash.set_bit(bit);
    }
    hash
}

/// A small whole number, which float32 holds exactly.
#[expect(clippy::cast_precision_loss, reason = "lengths and counts are below 2^24")]
fn to_f32(number: usize) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pictures of the table below, which PyPI's `pdqhash` 0.2.8 hashed. Everything is whole numbers.
    fn sample(kind: &str, (width, height): (u64, u64), (x, y, c): (u64, u64, u64)) -> u8 {
        let value = match kind {
            "rings" => {
                let (dx, dy) = ((2 * x).abs_diff(width), (2 * y).abs_diff(height));
                (dx * dx + dy * dy) / (width + height) * 7 + 40 * c
            }
            "tiles" => (x * 9 / width) * (y * 7 / height) * 37 + x * 64 / width + 50 * c,
            "noise" => ((x * 7_919 + y * 104_729 + c * 1_299_709) * 2_654_435_761 % (1 << 32)) >> 24,
            "ramp" => x * 255 / width,
            _ => 120,
        };
        u8::try_from(value % 256).unwrap()
    }

    fn picture(kind: &str, width: u32, height: u32) -> Vec<u8> {
        let size = (u64::from(width), u64::from(height));
        let places = (0..size.1).flat_map(|y| (0..size.0).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
        places.map(|place| sample(kind, size, place)).collect()
    }

    /// What `pdqhash.compute` gives. Of one colour and of a ramp most frequencies are rounding errors, so that the hash shows
    /// the order of all operations.
    const WHOLE: &[(&str, u32, u32, &str, u8)] = &[
        ("rings", 64, 64, "42c3d4b302c240b20bcb42f3af4b0bd3fd0aaf42542f550b0abd002bfff5cf3f", 100),
        ("rings", 512, 512, "6188d9599677698d59a2269c2698d9d99f6761dc28986776d76734d92898718d", 100),
        ("rings", 100, 37, "ed6b2bebb5290febfc000501f85ce950bc28682abc292809fd7d2d6df428f578", 100),
        ("rings", 5, 5, "318c358dce73ca723e0f6e5b3c8dc1e0c3f0358c318c348dce73ca723c0f6e1b", 8),
        ("rings", 4, 9, "0000000000000000000000000000000000000000000000000000000000000000", 0),
        ("tiles", 512, 5, "cd99d26932662d96226741faad95be05d1e8d269cd99c36932662d96263741fa", 100),
        ("tiles", 300, 400, "c35958faa8c5a7053ca2c3683841cd99373288cfc8cf3266c5be3c97c35d58fa", 100),
        ("tiles", 129, 511, "835958faac05a7057c22c3697a41cd99763291cf99cf326685be3c97835958fa", 100),
        ("noise", 512, 512, "bda6d7141555ffcdd599761b3db9ba002d4da01b755f2011155d1400ed4bb257", 75),
        ("noise", 5, 5, "ca7369d8358d93269326318cdb76ce7364d96cdbca7261d8358d93269b26318c", 92),
        ("noise", 129, 511, "06ef53efb845547fb92a7785d93065e0bb007e41b80876f0f84477501baa678d", 100),
        ("flat", 100, 37, "2c4b2c4b113411341134554b554b00002c4b1134113482002c4b2c4b11341134", 0),
        ("flat", 512, 512, "2c4b2c4b113411341134554b554b00002c4b1134113482002c4b2c4b11341134", 0),
        ("ramp", 300, 400, "a534bb54559a4d33956a524a4d4aebaaacda29556caaeabd4ce9315554a5ca96", 44),
        ("ramp", 512, 500, "e5664345558a6d36b53295d4755ab8866a767cab65564b1dd90d32722d2d65a4", 44),
        ("ramp", 200, 130, "25d66d54551ca55454aab55c6d565d472eb55acd664a59568ab12275ad4dc953", 46),
        ("ramp", 97, 64, "9964695244da64dd9554a5aa49da6cadadae4a959aaa6cae524d44d44f4dc99f", 42),
    ];

    /// Larger ones: the distance may be 2 where a frequency is within a rounding error of the median.
    const LARGE: &[(&str, u32, u32, &str, u8)] = &[
        ("rings", 1024, 768, "98807ddd775d98988222fddddddd63632263d1c9dd986741236761c1d88863c9", 100),
        ("rings", 2000, 600, "67262c60cf8ecf2698d99b9c3cf118d9e726c72698c9cccc6736662698c9c70e", 100),
        ("rings", 513, 64, "688b643bca0ec60e6c9944136cf96c39e8c9c49b79cc649b39cc49ee38dc79dc", 100),
        ("rings", 4001, 5, "1ecb92db6124692492db92db92db6d246d2496db9ecb92db6124692492db92db", 100),
        ("tiles", 1024, 768, "c35958fa3c87a7053ca2c3683a41cd997632324789cd3266c5be3c97c35d58fa", 100),
        ("tiles", 4001, 5, "cc99d36933662c96237741fa2c95be05d0e8d369cc99c36933662c96273741fa", 100),
        ("rings", 65, 2600, "30420ac0dd400f7cbfd3300a40c02f4f3d4ba2fc3500b2b74b2fbf50ebd7aeff", 100),
        ("tiles", 40, 33000, "c15d487a1ea2f7853ea2c3693941649977329b6688cd9b66c6be3c96c15d487a", 100),
    ];

    #[test]
    fn a_picture_that_is_filtered_as_a_whole_has_the_bits_of_the_reference() {
        for &(kind, width, height, expected, quality) in WHOLE {
            let (pdq, found) = hash(&picture(kind, width, height), (width, height), 1);
            assert_eq!((pdq.to_string(), found), (expected.to_owned(), quality), "{kind} {width}x{height}");
        }
    }

    #[test]
    fn only_where_rounding_may_decide_the_picture_is_filtered_as_a_whole() {
        let is_decided = |kind| {
            let reduced = filter_samples(&picture(kind, 400, 300), (400, 300), 1);
            is_decided_by_rounding(&reduced, &frequencies(&reduced))
        };
        assert_eq!(["tiles", "flat"].map(is_decided), [false, true]);
    }

    #[test]
    fn a_larger_picture_has_the_hash_of_the_reference_but_for_rounding() {
        for &(kind, width, height, expected, quality) in LARGE {
            let (pdq, found) = hash(&picture(kind, width, height), (width, height), 1);
            let distance = pdq.distance(&expected.parse().unwrap());
            assert!(distance <= 2 && found == quality, "{kind} {width}x{height}: {distance}, quality {found}");
        }
    }

    /// Sums of weighted samples do not overflow, however high the picture is.
    #[test]
    fn a_white_picture_stays_white() {
        for (width, height) in [(5, 2_048), (700, 2_049), (5, 32_768), (5, 32_769), (40_000, 5)] {
            let reduced = filter_samples(&vec![255; width * height * 3], (width, height), 1);
            let is_white = |value: &f32| (value - 255.0).abs() < 0.001;
            assert!(reduced.as_flattened().iter().all(is_white), "{width}x{height}");
        }
    }

    #[test]
    fn both_ways_to_filter_give_the_same_values() {
        for (width, height) in [(512, 512), (100, 37), (511, 129), (300, 5)] {
            let rgb = picture("tiles", width, height);
            let (width, height) = (width as usize, height as usize);
            let (whole, samples) = (filter_whole(&rgb, width, height), filter_samples(&rgb, (width, height), 1));
            for (whole, sample) in whole.as_flattened().iter().zip(samples.as_flattened()) {
                assert!((whole - sample).abs() < 0.01, "{width}x{height}: {whole} {sample}");
            }
        }
    }

    /// A picture of few low frequencies, as photographs have them.
    fn landscape((x, y): (f64, f64), c: u32) -> u8 {
        let waves = [(1.3, 0.4, 50.0), (2.1, 5.2, 25.0), (6.7, 3.9, 14.0), (9.1, 11.3, 8.0), (0.3, 7.7, 10.0)];
        let wave = |(across, down, height): (f64, f64, f64)| height * (across * x + down * y + f64::from(c)).sin();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
        let sample = (128.0 + waves.into_iter().map(wave).sum::<f64>()) as u8;
        sample
    }

    #[test]
    fn a_turned_hash_is_near_that_of_the_turned_picture_and_of_no_other() {
        let (width, height) = (300u32, 240u32);
        // The eight turns as `Pdq::turned` has them: transposed first, then mirrored, then flipped.
        let turned = |turn: usize| {
            let (is_transposed, is_flipped, is_mirrored) = (turn & 4 != 0, turn & 2 != 0, turn & 1 != 0);
            let (width, height) = if is_transposed { (height, width) } else { (width, height) };
            let sample = |x: u32, y: u32, c: u32| {
                let across = f64::from(if is_mirrored { width - 1 - x } else { x }) / f64::from(width);
                let down = f64::from(if is_flipped { height - 1 - y } else { y }) / f64::from(height);
                landscape(if is_transposed { (6.0 * down, 6.0 * across) } else { (6.0 * across, 6.0 * down) }, c)
            };
            let lines = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
            hash(&lines.map(|(x, y, c)| sample(x, y, c)).collect::<Vec<_>>(), (width, height), 1).0
        };
        let pictures: [Pdq; 8] = std::array::from_fn(turned);
        for (turn, hash) in pictures[0].turned().iter().enumerate() {
            for (other, picture) in pictures.iter().enumerate() {
                let distance = hash.distance(picture);
                assert!(if turn == other { distance <= 24 } else { distance >= 60 }, "{turn} {other}: {distance}");
            }
        }
    }

    /// Filtered as if it were a smaller picture, its samples would be taken from other places.
    #[test]
    fn a_shrunk_picture_has_nearly_the_hash_of_the_whole() {
        let (width, height) = (1_603u32, 1_201u32);
        let place = |at: u32, side: u32| 6.0 * f64::from(at) / f64::from(side);
        let whole: Vec<u8> = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (x, y, c))))
            .map(|(x, y, c)| landscape((place(x, width), place(y, height)), c))
            .collect();
        let expected = hash(&whole, (width, height), 1).0;
        for shrunk in [2, 4, 8] {
            let (columns, lines) = (width.div_ceil(shrunk), height.div_ceil(shrunk));
            let mean = |x: u32, y: u32, c: u32| {
                let reach = |at: u32, side: u32| at * shrunk..((at + 1) * shrunk).min(side);
                let pixels = reach(y, height).flat_map(|y| reach(x, width).map(move |x| (x, y)));
                let samples: Vec<u32> =
                    pixels.map(|(x, y)| u32::from(whole[((y * width + x) * 3 + c) as usize])).collect();
                u8::try_from(samples.iter().sum::<u32>() / u32::try_from(samples.len()).unwrap()).unwrap()
            };
            let places = (0..lines).flat_map(|y| (0..columns).flat_map(move |x| (0..3).map(move |c| (x, y, c))));
            let small: Vec<u8> = places.map(|(x, y, c)| mean(x, y, c)).collect();
            let distance = |hash: Pdq| hash.distance(&expected);
            let (near, far) = (hash(&small, (width, height), shrunk).0, hash(&small, (columns, lines), 1).0);
            assert!(distance(near) <= 8, "{shrunk}: {} {}", distance(near), distance(far));
        }
    }

    /// The quality counts whole hundredths of the full range: no picture of one colour has any, a checkerboard all.
    #[test]
    fn quality_is_0_for_one_colour_and_at_most_100() {
        let quality_of = |kind| hash(&picture(kind, 700, 600), (700, 600), 1).1;
        assert_eq!((quality_of("flat"), quality_of("tiles")), (0, 100));
    }
}
