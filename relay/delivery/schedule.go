package delivery

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	"postern/relay/queue"
)

// defaultSchedule is the wait after the first, second, … failed attempt; the last
// entry repeats. RFC 5321 section 4.5.4.1 asks for at least 30 minutes as a rule
// and for more attempts early on, since most trouble is short.
var defaultSchedule = []time.Duration{
	1 * time.Minute,
	5 * time.Minute,
	15 * time.Minute,
	30 * time.Minute,
	1 * time.Hour,
	2 * time.Hour,
	4 * time.Hour,
}

// defaultPauses is how long a destination that worked recently is left alone after
// the first, second, … time that no conversation with it could be had: a server that is
// restarted is back within seconds. Then defaultBackoff follows.
var defaultPauses = []time.Duration{
	1 * time.Second,
	2 * time.Second,
	4 * time.Second,
}

// defaultBackoff is how long a destination is suspended the first, second, … time in
// a row; the last repeats.
var defaultBackoff = []time.Duration{
	30 * time.Second,
	1 * time.Minute,
	2 * time.Minute,
	5 * time.Minute,
	10 * time.Minute,
}

// step returns entry n of a table whose last entry repeats.
func step(table []time.Duration, n int) time.Duration {
	if len(table) == 0 {
		return 0
	}
	return table[min(max(n, 0), len(table)-1)]
}

// stepAt is how far mail of that age has come in a table of waits.
func stepAt(table []time.Duration, age time.Duration) (n int) {
	for ; n < len(table)-1 && age > table[n]; n++ {
		age -= table[n]
	}
	return n
}

// retryWait is the wait before the next attempt, attempts being those finished
// before the one that has just ended. It varies by a tenth up or down with the
// message, so that mail which failed together does not come back together; recipients
// of one message stay together and go out in one transaction again.
func retryWait(table []time.Duration, attempts int, id queue.ID) time.Duration {
	h := fnv.New32a()
	h.Write(id[:])
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(attempts)))
	wait := step(table, attempts)
	return wait - wait/10 + wait/5*time.Duration(h.Sum32()%1000)/1000
}
