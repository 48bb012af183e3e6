//! The Gregorian calendar, proleptic, from seconds since 1970 and back.

/// A moment, broken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub year: i64,
    /// 1–12.
    pub month: u8,
    /// 1–31.
    pub day: u8,
    /// 1 is Sunday.
    pub day_of_week: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

pub const DAY_SECONDS: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const CYCLE_DAYS: i64 = 146_097;
/// From 1 March 0000 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;

/// Breaks seconds down.
pub fn from_seconds(seconds: i64) -> Moment {
    let (days, rest) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    // Years begin in March here: the leap day is the last one, and months have a regular pattern.
    let since = days + EPOCH_DAYS;
    let (cycle, in_cycle) = (since.div_euclid(CYCLE_DAYS), since.rem_euclid(CYCLE_DAYS));
    let leap_free = in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096;
    let year_in_cycle = leap_free / 365;
    let day_of_year = in_cycle - (year_in_cycle * 365 + year_in_cycle / 4 - year_in_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    Moment {
        year: cycle * 400 + year_in_cycle + i64::from(month <= 2),
        month: month as u8,
        day: day as u8,
        day_of_week: ((days + 4).rem_euclid(7) + 1) as u8,
        hour: (rest / 3600) as u8,
        minute: (rest / 60 % 60) as u8,
        second: (rest % 60) as u8,
    }
}

/// The seconds of a moment, whatever its day of the week.
pub fn to_seconds(moment: &Moment) -> i64 {
    let Moment { year, month, day, day_of_week: _, hour, minute, second } = *moment;
    let month = i64::from(month);
    let (year, month_from_march) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (cycle, in_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let days = cycle * CYCLE_DAYS + in_cycle * 365 + in_cycle / 4 - in_cycle / 100 + day_of_year - EPOCH_DAYS;
    days * DAY_SECONDS + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        // From `date -u -d @N`.
        let cases = [
            (0, (1970, 1, 1), 5, (0, 0, 0)),
            (951_782_400, (2000, 2, 29), 3, (0, 0, 0)),
            (1_709_251_199, (2024, 2, 29), 5, (23, 59, 59)),
            (4_107_542_400, (2100, 3, 1), 2, (0, 0, 0)),
            (-1, (1969, 12, 31), 4, (23, 59, 59)),
        ];
        for (seconds, date, day_of_week, time) in cases {
            let moment = from_seconds(seconds);
            assert_eq!((moment.year, moment.month, moment.day), date);
            assert_eq!((moment.hour, moment.minute, moment.second), time);
            assert_eq!(moment.day_of_week, day_of_week);
        }
    }

    #[test]
    fn every_day_of_a_cycle_comes_back_and_follows_the_one_before() {
        let mut before = from_seconds(-DAY_SECONDS);
        for day in 0..CYCLE_DAYS {
            let moment = from_seconds(day * DAY_SECONDS);
            assert_eq!(to_seconds(&moment), day * DAY_SECONDS);
            let next_day = moment.day == before.day + 1 && moment.month == before.month;
            assert!(next_day || moment.day == 1, "{before:?} {moment:?}");
            before = moment;
        }
    }
}
