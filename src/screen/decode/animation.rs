//! Which frames of an animation are screened: those that are seen the longest, among frames that look different.
//!
//! Frames build on each other, so that all of them are decoded. Therefore the number of pixels over all frames is limited.
//!
//! Frames behind those that browsers show get only the places that are left over, however long they ask to be seen. Else
//! they would push out what people see.

use std::hash::{BuildHasher, RandomState};

use super::{DecodeContext, Undecodable};

/// Browsers show a frame that asks for 10 ms or less for 100 ms.
const SHORTEST_MS: u32 = 10;
const DEFAULT_MS: u32 = 100;

/// To begin a frame takes as long as this many pixels, however small the frame is.
pub(super) const FRAME_COST_PIXELS: u64 = 2048;

/// Chooses the frames of an animation while they are decoded, one after the other.
pub(super) struct FrameChoice {
    /// Of each frame that browsers show, whether it is to be screened.
    chosen: Vec<bool>,
    /// Places that no chosen frame needs. Where one looks like a frame that was screened already, its place is spare, too.
    /// The next other frame takes it.
    spare: usize,
    /// What the screened frames look like.
    seen: Vec<u64>,
    /// Its key is another one for each file. With a fixed key, files could be made whose frames collide.
    hasher: RandomState,
    leaves_out_hidden: bool,
}

impl FrameChoice {
    /// Chooses up to `max` of the frames that browsers show, which are the first `shown`: the first, the last, the longest,
    /// and those that are on screen at evenly spaced times.
    pub(super) fn new(durations_ms: &[u32], shown: usize, max: u32) -> Self {
        let shown = &durations_ms[..shown.min(durations_ms.len())];
        let durations: Vec<u64> =
            shown.iter().map(|ms| u64::from(if *ms <= SHORTEST_MS { DEFAULT_MS } else { *ms })).collect();
        let mut chosen = vec![false; durations.len()];
        let mut left = (max as usize).min(durations.len());
        let spare = max as usize - left;
        let mut choose = |index: usize, left: &mut usize| {
            if *left > 0 && !std::mem::replace(&mut chosen[index], true) {
                *left -= 1;
            }
        };
        if let Some(last) = durations.len().checked_sub(1) {
            choose(0, &mut left);
            choose(last, &mut left);
            let longest = (0..=last).rev().max_by_key(|index| durations[*index]).unwrap_or_default();
            choose(longest, &mut left);
            // By time first, then by number, so that one very long frame does not take the place of all others.
            let total: u64 = durations.iter().sum();
            let slots = left as u64;
            let times = (1..=slots).map(|slot| total * slot / (slots + 1));
            for time in times {
                choose(frame_at(&durations, time), &mut left);
            }
            let mut steps = 1;
            while left > 0 {
                steps *= 2;
                for step in 1..steps {
                    choose(last * step / steps, &mut left);
                }
            }
        }
        Self { chosen, spare, seen: Vec::new(), hasher: RandomState::new(), leaves_out_hidden: false }
    }

    /// Whether the frame of this number may be one that is screened, so that it has to be decoded. Pages do not build on
    /// each other.
    pub(super) fn wants(&self, number: u32) -> bool {
        self.spare > 0 || self.chosen.get(number as usize).copied().unwrap_or_default()
    }

    /// Whether the frame of this number, which looks like this, is to be screened. Frames are given in order.
    pub(super) fn takes(&mut self, number: u32, canvas: &[u8]) -> bool {
        let is_chosen = self.chosen.get(number as usize).copied().unwrap_or_default();
        if !is_chosen && self.spare == 0 {
            let is_hidden = number as usize >= self.chosen.len();
            if is_hidden && !self.leaves_out_hidden {
                self.leaves_out_hidden = !self.seen.contains(&self.hasher.hash_one(canvas));
            }
            return false;
        }
        let is_new = self.is_new(canvas);
        match (is_chosen, is_new) {
            (true, false) => self.spare += 1,
            (false, true) => self.spare -= 1,
            _ => {}
        }
        is_new
    }

    /// Whether the last frame that could be decoded is to be screened, where those behind it could not.
    pub(super) fn takes_last(&mut self, canvas: &[u8]) -> bool {
        self.is_new(canvas)
    }

    /// What is not screened although some viewer may show it. It is damage, so that the file never passes.
    pub(super) fn damage(&self) -> Option<&'static str> {
        self.leaves_out_hidden.then_some("frames that no browser shows are left out")
    }

    fn is_new(&mut self, canvas: &[u8]) -> bool {
        let hash = self.hasher.hash_one(canvas);
        let is_new = !self.seen.contains(&hash);
        if is_new {
            self.seen.push(hash);
        }
        is_new
    }
}

/// The number of the frame that is on screen at this time.
fn frame_at(durations: &[u64], time: u64) -> usize {
    let mut end = 0;
    durations
        .iter()
        .position(|duration| {
            end += duration;
            time < end
        })
        .unwrap_or_default()
}

impl DecodeContext<'_> {
    /// Checks the number of pixels over all frames of an animation, each counted as at least [`FRAME_COST_PIXELS`].
    pub(super) fn check_animation(&self, frames: u32, pixels: u64) -> Result<(), Undecodable> {
        if pixels > self.limits.max_animation_pixels {
            return Err(Undecodable(format!(
                "over the decode limits: {frames} frames are {pixels} pixels, the limit is {}",
                self.limits.max_animation_pixels
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(durations: &[u32], max: u32) -> Vec<usize> {
        let choice = FrameChoice::new(durations, durations.len(), max);
        (0..durations.len()).filter(|index| choice.chosen[*index]).collect()
    }

    #[test]
    fn the_first_the_last_and_the_longest_frame_are_always_chosen() {
        assert_eq!(chosen(&[100; 3], 4), [0, 1, 2]);
        assert_eq!(chosen(&[100; 9], 1), [0]);
        assert_eq!(chosen(&[100; 9], 2), [0, 8]);
        assert_eq!(chosen(&[100, 100, 100, 100, 60_000, 100, 100, 100, 100, 100], 3), [0, 4, 9]);
        // It is chosen also where no evenly spaced time falls on it.
        let mut durations = [100; 10];
        durations[2] = 300;
        assert_eq!(chosen(&durations, 3), [0, 2, 9]);
        assert!(chosen(&[], 3).is_empty());
    }

    #[test]
    fn the_other_frames_are_those_on_screen_at_evenly_spaced_times() {
        assert_eq!(chosen(&[100; 100], 5), [0, 25, 50, 75, 99]);
    }

    #[test]
    fn one_long_frame_does_not_take_the_place_of_all_others() {
        let mut durations = [50; 40];
        durations[20] = 1_000_000;
        let chosen = chosen(&durations, 8);
        assert_eq!(chosen.len(), 8);
        assert!(chosen.contains(&20));
    }

    #[test]
    fn a_duration_that_browsers_lengthen_is_lengthened() {
        assert_eq!(chosen(&[20, 0, 20, 20], 3), [0, 1, 3]);
    }

    #[test]
    fn a_frame_that_looks_like_another_one_gives_its_place_away() {
        // Frames 0 to 4 look alike.
        let mut choice = FrameChoice::new(&[100; 10], 10, 5);
        let chosen: Vec<_> = (0..10).filter(|index| choice.chosen[*index]).collect();
        let taken: Vec<_> =
            (0..10u32).filter(|number| choice.takes(*number, &[u8::try_from(*number).unwrap().max(4)])).collect();
        assert_eq!(taken.len(), chosen.len(), "{taken:?} in place of {chosen:?}");
        assert_eq!((taken[0], taken.last()), (0, Some(&9)));
        assert!(choice.takes_last(&[77]) && !choice.takes_last(&[4]));
    }

    #[test]
    fn frames_that_browsers_do_not_show_get_what_is_left_over() {
        let mut durations = [65_000; 100];
        durations[..3].copy_from_slice(&[100, 60_000, 100]);
        // What each frame looks like, and how many are shown: what is taken of at most 4, and whether some are left out.
        let different: Vec<u8> = (0..100).collect();
        let taken = |looks: &[u8], shown: usize| {
            let mut choice = FrameChoice::new(&durations[..looks.len()], shown, 4);
            let taken: Vec<_> = (0..).zip(looks).filter(|(number, look)| choice.takes(*number, &[**look])).collect();
            (taken.into_iter().map(|(number, _)| number).collect::<Vec<u32>>(), choice.damage().is_some())
        };
        assert_eq!(taken(&different, 3), (vec![0, 1, 2, 3], true));
        assert_eq!(taken(&different, 0), (vec![0, 1, 2, 3], true));
        assert_eq!(taken(&different[..4], 3), (vec![0, 1, 2, 3], false));
        assert_eq!(taken(&[0, 1, 1, 2, 3], 3), (vec![0, 1, 3, 4], false), "a frame that is seen twice");
        assert_eq!(taken(&[0, 1, 2, 3, 3, 0], 3), (vec![0, 1, 2, 3], false), "what is left out was seen");
        assert!(!taken(&different, 100).1, "frames that are shown may be left out");
    }

    #[test]
    fn a_file_cannot_be_made_to_collide() {
        let [one, other] = [0, 1].map(|_| {
            let mut choice = FrameChoice::new(&[100], 1, 1);
            assert!(choice.takes(0, &[7]));
            choice.seen
        });
        assert_ne!(one, other, "the same picture has another hash in each file");
    }
}
