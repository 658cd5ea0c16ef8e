//! The memory of one thread's pixels, from one image to the next.
//!
//! What the system gives anew it clears and maps page by page. For twelve megapixels that takes up to a third as long as
//! decoding them.

/// Memory between two images.
pub(super) struct Kept {
    pixels: Vec<u8>,
    /// What images take of late. One that took much is remembered over a few that do not.
    usual_bytes: usize,
    most_bytes: usize,
}

impl Kept {
    /// Nothing yet, and never more than `most_bytes`.
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { pixels: Vec::new(), usual_bytes: 0, most_bytes }
    }

    /// Memory to be written over: another image may be in it.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut pixels = std::mem::take(&mut self.pixels);
        if pixels.capacity() < bytes {
            // Before there is more: it would only be copied.
            drop(pixels);
            return vec![0; bytes];
        }
        pixels.resize(bytes, 0);
        pixels
    }

    /// Keeps memory that is done with, unless it is more than images take of late.
    pub(super) fn give_back(&mut self, pixels: Vec<u8>) {
        self.usual_bytes = pixels.len().max(self.usual_bytes / 8 * 7);
        if pixels.capacity() <= self.most_bytes.min(2 * self.usual_bytes) {
            self.pixels = pixels;
        }
    }

    /// Makes room for an image that has its memory from elsewhere.
    pub(super) fn leave_room(&mut self, bytes: u64, limit_bytes: u64) {
        if bytes.saturating_add(self.pixels.capacity() as u64) > limit_bytes {
            self.pixels = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kept: &mut Kept, bytes: usize) -> *const u8 {
        let pixels = kept.take(bytes);
        assert_eq!(pixels.len(), bytes);
        let place = pixels.as_ptr();
        kept.give_back(pixels);
        place
    }

    #[test]
    fn images_of_one_size_have_the_same_memory_and_smaller_ones_between_them_do_not_change_that() {
        let mut kept = Kept::new(10_000);
        let place = decode(&mut kept, 8_000);
        for bytes in [8_000, 7_000, 100, 200, 8_000] {
            assert_eq!(decode(&mut kept, bytes), place, "{bytes}");
        }
    }

    #[test]
    fn what_is_far_larger_than_usual_is_given_back_and_more_than_is_allowed_never_kept() {
        let mut kept = Kept::new(10_000);
        decode(&mut kept, 8_000);
        for _ in 0..6 {
            decode(&mut kept, 100);
        }
        assert!(kept.pixels.capacity() <= 100);
        decode(&mut kept, 10_001);
        assert_eq!(kept.pixels.capacity(), 0);
    }

    #[test]
    fn there_is_room_for_what_an_image_may_take() {
        let mut kept = Kept::new(10_000);
        decode(&mut kept, 8_000);
        kept.leave_room(2_000, 10_000);
        assert_eq!(kept.pixels.capacity(), 8_000);
        kept.leave_room(2_001, 10_000);
        assert_eq!(kept.pixels.capacity(), 0);
    }
}
