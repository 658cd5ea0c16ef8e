//! The memory of objects, kept for the next ones.
//!
//! It comes from the system, not from the C library: there, objects of many sizes leave pieces into which the next does
//! not fit. It is kept because the system clears and maps fresh memory page by page.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Memory comes in multiples of this, so that objects of much the same size fit into each other's. Unless the system
/// maps huge pages, what no object has reached takes none.
const STEP_BYTES: usize = 1 << 20;

/// Most that is kept with no object in it.
const MOST_SPARE_BYTES: usize = 16 << 20;

/// Memory between two objects, the latest last.
#[derive(Clone, Default)]
pub(super) struct BufferPool(Arc<Mutex<VecDeque<MmapMut>>>);

/// Memory for one object, and what of it has arrived. It is spare again when it is dropped.
pub(super) struct Buffer {
    /// Taken when it is dropped.
    memory: Option<MmapMut>,
    announced: usize,
    arrived: usize,
    spare: BufferPool,
}

impl BufferPool {
    /// Room for an object of so many bytes: whole steps, and where it is used again a quarter of them, or one, more at
    /// the most.
    ///
    /// # Errors
    /// When the system has none.
    pub(super) fn take(&self, bytes: u64) -> io::Result<Buffer> {
        let announced = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let least = announced.max(1).checked_next_multiple_of(STEP_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let fits = least..=least.saturating_add((least / 4).max(STEP_BYTES));
        let kept = {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = spare.iter().enumerate().rev().filter(|(_, kept)| fits.contains(&kept.len()));
            let smallest = fitting.min_by_key(|(_, kept)| kept.len()).map(|(at, _)| at);
            smallest.and_then(|at| spare.remove(at))
        };
        let memory = kept.map_or_else(|| MmapMut::map_anon(least), Ok)?;
        Ok(Buffer { memory: Some(memory), announced, arrived: 0, spare: self.clone() })
    }

    fn give_back(&self, memory: MmapMut) {
        if memory.len() > MOST_SPARE_BYTES {
            return;
        }
        // Given back to the system when nobody waits for the lock.
        let mut too_much = Vec::new();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push_back(memory);
        while spare.iter().map(|kept| kept.len()).sum::<usize>() > MOST_SPARE_BYTES {
            too_much.extend(spare.pop_front());
        }
        drop(spare);
    }
}

impl Buffer {
    /// Adds what has arrived; false when that is more than was announced.
    pub(super) fn push(&mut self, chunk: &[u8]) -> bool {
        let end = self.arrived + chunk.len();
        let room = self.memory.as_deref_mut().and_then(|memory| memory[..self.announced].get_mut(self.arrived..end));
        let Some(room) = room else { return false };
        room.copy_from_slice(chunk);
        self.arrived = end;
        true
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().map_or(&[], |memory| &memory[..self.arrived])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.spare.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = STEP_BYTES as u64;

    /// Has an object of this size come and go, and returns where it was.
    fn object(spare: &BufferPool, bytes: u64) -> *const u8 {
        let mut buffer = spare.take(bytes).unwrap();
        assert!(buffer.push(&vec![1; usize::try_from(bytes).unwrap()]));
        buffer.as_ref().as_ptr()
    }

    /// Steps of each that is kept.
    fn kept(spare: &BufferPool) -> Vec<usize> {
        spare.0.lock().unwrap().iter().map(|kept| kept.len() / STEP_BYTES).collect()
    }

    #[test]
    fn objects_of_much_the_same_size_have_the_same_memory() {
        let spare = BufferPool::default();
        for bytes in [4 * MIB - 1, 4 * MIB - 1000, 4 * MIB, 3 * MIB, 4 * MIB] {
            object(&spare, bytes);
            assert_eq!(kept(&spare), [4], "{bytes}");
        }
        let _two = [4 * MIB, 4 * MIB].map(|bytes| spare.take(bytes).unwrap());
        assert!(kept(&spare).is_empty());
    }

    #[test]
    fn an_object_has_the_smallest_memory_that_fits_and_none_that_is_far_too_large() {
        let spare = BufferPool::default();
        drop([2, 1, 3, 4].map(|steps| spare.take(steps * MIB).unwrap()));
        let _held = spare.take(2 * MIB).unwrap();
        assert_eq!(kept(&spare), [1, 3, 4]);
        let _small = [0, 1].map(|bytes| spare.take(bytes).unwrap());
        assert_eq!(kept(&spare), [3, 4]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_came_last_stays() {
        let spare = BufferPool::default();
        object(&spare, 3 * MIB);
        object(&spare, MOST_SPARE_BYTES as u64 + 1);
        assert_eq!(kept(&spare), [3], "what is not kept itself drives nothing out");
        drop([7, 7].map(|steps| spare.take(steps * MIB).unwrap()));
        assert_eq!(kept(&spare), [7, 7]);
    }

    #[test]
    fn an_object_is_what_was_pushed_and_nothing_of_the_one_before_it() {
        let spare = BufferPool::default();
        let place = object(&spare, 1000);
        let mut buffer = spare.take(3).unwrap();
        assert!(buffer.as_ref().is_empty());
        assert!(buffer.push(b"ab") && buffer.push(b"") && !buffer.push(b"cd"), "one byte is to come");
        assert_eq!(buffer.as_ref(), b"ab");
        assert!(buffer.push(b"c"));
        assert_eq!(buffer.as_ref(), b"abc");
        assert_eq!(buffer.as_ref().as_ptr(), place);
    }
}
