//! One thread's memory for pixels, kept from one image to the next.
//!
//! The system clears new memory and maps it page by page. For twelve megapixels that takes up to a third as long as
//! decoding them.

/// Memory that is kept from one image to the next.
pub(super) struct ReusedBuffer {
    pixels: Vec<u8>,
    /// What recent images took. It shrinks slowly, so that one large image is remembered over a few small ones.
    usual_bytes: usize,
    max_bytes: usize,
}

impl ReusedBuffer {
    /// An empty buffer that never keeps more than `max_bytes`.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { pixels: Vec::new(), usual_bytes: 0, max_bytes }
    }

    /// Takes memory that has to be written over, since it may hold another image.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut pixels = std::mem::take(&mut self.pixels);
        if pixels.capacity() < bytes {
            // Freed first: growing the vector would copy it.
            drop(pixels);
            return vec![0; bytes];
        }
        pixels.resize(bytes, 0);
        pixels
    }

    /// Keeps memory that is not used any more, unless it is far more than recent images took.
    pub(super) fn give_back(&mut self, pixels: Vec<u8>) {
        self.usual_bytes = pixels.len().max(self.usual_bytes / 8 * 7);
        if pixels.capacity() <= self.max_bytes.min(2 * self.usual_bytes) {
            self.pixels = pixels;
        }
    }

    /// Frees the kept memory where an image that allocates its own memory would otherwise exceed the limit.
    pub(super) fn leave_room(&mut self, bytes: u64, limit_bytes: u64) {
        if bytes.saturating_add(self.pixels.capacity() as u64) > limit_bytes {
            self.pixels = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(buffer: &mut ReusedBuffer, bytes: usize) -> *const u8 {
        let pixels = buffer.take(bytes);
        assert_eq!(pixels.len(), bytes);
        let address = pixels.as_ptr();
        buffer.give_back(pixels);
        address
    }

    #[test]
    fn images_of_one_size_use_the_same_memory_also_with_smaller_ones_between_them() {
        let mut buffer = ReusedBuffer::new(10_000);
        let address = decode(&mut buffer, 8_000);
        for bytes in [8_000, 7_000, 100, 200, 8_000] {
            assert_eq!(decode(&mut buffer, bytes), address, "{bytes}");
        }
    }

    #[test]
    fn memory_far_above_the_usual_is_freed_and_more_than_the_maximum_never_kept() {
        let mut buffer = ReusedBuffer::new(10_000);
        decode(&mut buffer, 8_000);
        for _ in 0..6 {
            decode(&mut buffer, 100);
        }
        assert!(buffer.pixels.capacity() <= 100);
        decode(&mut buffer, 10_001);
        assert_eq!(buffer.pixels.capacity(), 0);
    }

    #[test]
    fn memory_is_freed_for_an_image_that_would_exceed_the_limit() {
        let mut buffer = ReusedBuffer::new(10_000);
        decode(&mut buffer, 8_000);
        buffer.leave_room(2_000, 10_000);
        assert_eq!(buffer.pixels.capacity(), 8_000);
        buffer.leave_room(2_001, 10_000);
        assert_eq!(buffer.pixels.capacity(), 0);
    }
}
