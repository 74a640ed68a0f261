package budget

import "time"

// moment is a time by the database's clock, since the epoch.
type moment = time.Duration

// freed is so many units that come back.
type freed struct {
	at moment
	n  int64
}

// forecast is when units of a limit are there to be spent, as far as is known: if all of them
// are spent as they come, they come again after each period.
type forecast struct {
	at     moment  // when it was made
	units  []freed // within period of at, ascending; all units of the limit
	most   int64   // their sum
	period time.Duration
}

// newForecast completes what the database says: free units, and those that come back.
func newForecast(at moment, free int64, back []freed, l Limit) *forecast {
	f := &forecast{at: at, most: l.Max, period: period(l)}
	last := at + f.period - time.Microsecond
	sum := int64(0)
	for _, u := range append([]freed{{at, free}}, back...) {
		if u.n = min(u.n, l.Max-sum); u.n > 0 {
			f.units = append(f.units, freed{min(max(u.at, at), last), u.n})
			sum += u.n
		}
	}
	if sum < l.Max {
		f.units = append(f.units, freed{last, l.Max - sum})
	}
	return f
}

// period is after what time a unit comes back that is spent now: budget_clock's width times
// counts (migrations/0010_budget.sql).
func period(l Limit) time.Duration {
	if l.Zone != "" {
		return l.Window
	}
	width := max(l.Window/60, time.Second/4)
	return (l.Window + width - 1).Truncate(width) + 2*width
}

// when is when the xth unit is there, from 1.
func (f *forecast) when(x int64) moment {
	rounds := (max(x, 1) - 1) / f.most
	x -= rounds * f.most
	i := 0
	for ; i < len(f.units)-1 && x > f.units[i].n; i++ {
		x -= f.units[i].n
	}
	return f.units[i].at + time.Duration(rounds)*f.period
}

// before is how many units are there before t.
func (f *forecast) before(t moment) (n int64) {
	if t <= f.at {
		return 0
	}
	rounds := int64((t - f.at) / f.period)
	t -= time.Duration(rounds) * f.period
	n = rounds * f.most
	for _, u := range f.units {
		if u.at < t {
			n += u.n
		}
	}
	return n
}

// line is where those that wait for units of a limit stand: its end, and how many of the units
// that come then are promised.
type line struct {
	end      moment
	promised int64
}

// join promises n more units, at least behind ahead others, and returns when they are there.
func (l *line) join(f *forecast, n, ahead int64) moment {
	if l.end > f.at {
		ahead = max(ahead, f.before(l.end)+l.promised)
	}
	l.end = f.when(ahead + n)
	l.promised = ahead + n - f.before(l.end)
	return l.end
}

// freedAt are units with the times at which they come back, in seconds.
func freedAt(times []float64, n []int64) []freed {
	units := make([]freed, len(times))
	for i := range times {
		units[i] = freed{moment(times[i] * float64(time.Second)), n[i]}
	}
	return units
}
