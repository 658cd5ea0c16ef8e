"""Each class and each problem, on pictures that are made for it."""

import dataclasses
import unittest
from pathlib import Path

import numpy as np
from compare import MOST_VIEWS, View, compare
from drawing import hidden, picture, plain
from seen import Seen, reduce, turn


def opaque(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])


def seen(rgba: np.ndarray, frames: list[np.ndarray] = (), durations: list[float] = ()) -> Seen:
    shown = {n: reduce(frame, time) for n, (frame, time) in enumerate(zip(frames, durations, strict=True))}
    return Seen(rgba.shape[1], rgba.shape[0], reduce(rgba), shown, max(len(shown), 1))


def first(grid: np.ndarray) -> View:
    return View(None, False, 1, grid)


RECORD = {"outcome": "passed", "width": 120, "height": 80, "damage": None}
STILL = seen(opaque(picture()))


def result(shown: Seen, views: list[View], other_way_up: int = 1, **record):
    return compare(Path("a.png"), "png", shown, {**RECORD, **record}, views, other_way_up)


class Comparison(unittest.TestCase):
    def test_the_same_picture_agrees(self):
        self.assertEqual("agree", result(STILL, [first(STILL.picture.white)]).kind)

    def test_another_picture_differs_also_where_its_mean_is_the_same(self):
        mirrored = STILL.picture.white[:, ::-1]
        found = result(STILL, [first(mirrored)])
        self.assertEqual("differ", found.kind)
        self.assertIn("the first view differs", found.problems[0])

    def test_another_size_differs(self):
        found = result(STILL, [first(STILL.picture.white)], width=80)
        self.assertEqual(["size is 80x80, shown are 120x80"], found.problems)

    def test_scores_without_pixels_differ(self):
        self.assertEqual(["no pixels were saved"], result(STILL, []).problems)

    def test_the_other_classes(self):
        blank = seen(np.zeros((80, 120, 4), np.uint8))
        self.assertEqual("unscored", result(STILL, [], outcome="undecodable").kind)
        self.assertEqual("blank", result(blank, [], outcome="undecodable").kind)
        self.assertEqual("hidden", result(blank, [first(blank.picture.white)]).kind)
        self.assertEqual("neither", result(Seen(), [], outcome="undecodable").kind)

    def test_damage_that_passed_is_noticed(self):
        views = [first(STILL.picture.white)]
        self.assertTrue(result(STILL, views, damage="cut short").damage_passed)
        self.assertFalse(result(STILL, views, damage="cut short", outcome="review").damage_passed)


class Views(unittest.TestCase):
    def test_a_picture_in_the_alpha_channel_needs_a_view_over_black(self):
        shown = seen(hidden(255))
        white, black = first(shown.picture.white), View(0, True, 1, shown.picture.black)
        self.assertEqual(["the picture over black is no view"], result(shown, [white]).problems)
        self.assertEqual([], result(shown, [white, black]).problems)
        wrong = dataclasses.replace(black, pixels=shown.picture.white)
        self.assertIn("frame 0 over black differs", result(shown, [white, wrong]).problems[0])

    def test_views_over_black_may_be_left_out_where_there_are_too_many(self):
        shown = seen(hidden(255))
        self.assertEqual([], result(shown, [first(shown.picture.white)] * MOST_VIEWS).problems)

    def test_the_last_and_the_longest_frame_are_views(self):
        frames = [opaque(plain(0)), opaque(picture()), opaque(plain(9)), opaque(picture(4))]
        shown = seen(frames[0], frames, [100, 9000, 100, 100])
        views = [first(shown.frames[0].white)]
        found = result(shown, views).problems
        self.assertEqual(["the last frame, 3, is no view", "the longest frame, 1, is no view"], found)
        views += [View(number, False, 1, shown.frames[number].white) for number in (1, 3)]
        self.assertEqual([], result(shown, views).problems)

    def test_every_saved_frame_is_compared_with_the_frame_of_its_number(self):
        frames = [opaque(picture(number)) for number in range(3)]
        shown = seen(frames[0], frames, [100] * 3)
        wrong = View(1, False, 1, shown.frames[0].white)
        views = [first(shown.frames[0].white), wrong, View(2, False, 1, shown.frames[2].white)]
        [problem] = result(shown, views).problems
        self.assertIn("frame 1 over white differs", problem)

    def test_pictures_that_only_other_viewers_show_are_not_compared(self):
        default = View(2, False, 1, reduce(opaque(plain(255))).white)
        other_rows = View(0, False, 1, reduce(opaque(plain(255))).white)
        self.assertEqual([], result(STILL, [first(STILL.picture.white), default, other_rows]).problems)

    def test_a_picture_that_others_turn_needs_a_turned_view(self):
        white = STILL.picture.white
        turned = View(0, False, 6, turn(white, 6))
        self.assertEqual(["the picture turned by 6 is no view"], result(STILL, [first(white)], 6).problems)
        self.assertEqual([], result(STILL, [first(white), turned], 6).problems)


if __name__ == "__main__":
    unittest.main()
