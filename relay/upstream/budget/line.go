package budget

import "time"

// moment is a time by the database's clock, since the epoch.
type moment = time.Duration

// freed is a number of units that can be spent from a moment on.
type freed struct {
	at moment
	n  float64
}

// forecast is when units of a limit can be spent: all of them, ascending and within period of the
// first. Those that are spent as they come are there again after each period.
type forecast struct {
	units  []freed
	period time.Duration
}

// newForecast completes what the database says: free units, and those that come back, at times in
// seconds.
func newForecast(at moment, free int64, times []float64, n []int64, l Limit) *forecast {
	f := &forecast{period: l.Window}
	last, rest := at+l.Window, l.Max
	if l.Zone == "" {
		width := max(l.Window/60, time.Second/10) // of a bucket, see budget_clock
		f.period += width
		last = (at + f.period).Truncate(width)
	}
	put := func(when moment, n int64) {
		when, n = min(max(when, at), last), min(n, rest)
		rest -= n
		switch i := len(f.units) - 1; {
		case n <= 0:
		case i >= 0 && f.units[i].at == when:
			f.units[i].n += float64(n)
		default:
			f.units = append(f.units, freed{when, float64(n)})
		}
	}
	put(at, free)
	for i := range n {
		put(moment(times[i]*float64(time.Second)).Round(time.Millisecond), n[i])
	}
	put(last, rest)
	return f
}

// before is the last moment until t at which units can be spent, t itself if there is none.
func (f *forecast) before(t moment) moment {
	round := max((t-f.units[0].at)/f.period, 0)
	for i := len(f.units) - 1; i >= 0; i-- {
		if at := f.units[i].at + round*f.period; at <= t {
			return at
		}
	}
	return t
}

// line is where those that wait for units of a limit stand: when the last has its turn, and how
// many of the units of that moment are promised.
type line struct {
	end      moment
	promised float64
}

// join is the line with n more units promised, behind those that are.
func (l line) join(f *forecast, n float64) line {
	round := max((l.end-f.units[0].at)/f.period-1, 0)
	for ; ; round++ {
		for _, u := range f.units {
			at := u.at + round*f.period
			if at < l.end {
				continue
			}
			if at > l.end {
				l = line{end: at}
			}
			take := min(u.n-l.promised, n)
			if take > 0 {
				l.promised += take
				n -= take
			}
			if n <= 0 {
				return l
			}
		}
	}
}
