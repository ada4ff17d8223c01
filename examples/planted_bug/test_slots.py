import unittest

from slots import free, merged, parse_time

NINE, TEN, ELEVEN, NOON = (parse_time(text) for text in ("9:00", "10:00", "11:00", "12:00"))


class TestSlots(unittest.TestCase):
    def test_times(self):
        self.assertEqual(parse_time("9:30"), 570)

    def test_touching_slots_are_one(self):
        self.assertEqual(merged([(TEN, ELEVEN), (NINE, TEN)]), [(NINE, ELEVEN)])

    def test_a_slot_inside_another_changes_nothing(self):
        self.assertEqual(merged([(NINE, NOON), (TEN, ELEVEN)]), [(NINE, NOON)])

    def test_what_is_left_of_a_day(self):
        self.assertEqual(free([(TEN, ELEVEN)], (NINE, NOON)), [(NINE, TEN), (ELEVEN, NOON)])


if __name__ == "__main__":
    unittest.main()
