package delivery

import (
	"slices"

	"postern/relay/connect"
)

// line is a queue of jobs that also takes some back at its front.
type line struct {
	front []*job // in reverse
	back  []*job
	head  int // of back

	octets int64 // that the jobs weigh
}

func (l *line) len() int { return len(l.front) + len(l.back) - l.head }

func (l *line) push(j *job) {
	if l.head > 64 && l.head > len(l.back)/2 { // give the used part back
		n := copy(l.back, l.back[l.head:])
		clear(l.back[n:])
		l.back, l.head = l.back[:n], 0
	}
	l.back = append(l.back, j)
	l.octets += j.octets
}

func (l *line) pushFront(j *job) {
	l.front = append(l.front, j)
	l.octets += j.octets
}

// first is what pop would return.
func (l *line) first() *job {
	switch {
	case len(l.front) > 0:
		return l.front[len(l.front)-1]
	case l.head < len(l.back):
		return l.back[l.head]
	}
	return nil
}

// find returns the first job that is wanted, nil if none is.
func (l *line) find(wanted func(*job) bool) *job {
	for _, j := range slices.Backward(l.front) {
		if wanted(j) {
			return j
		}
	}
	if i := slices.IndexFunc(l.back[l.head:], wanted); i >= 0 {
		return l.back[l.head+i]
	}
	return nil
}

// pop returns nil when the line is empty.
func (l *line) pop() *job {
	j := l.first()
	switch n := len(l.front); {
	case j == nil:
		return nil
	case n > 0:
		l.front[n-1] = nil
		l.front = l.front[:n-1]
	default:
		l.back[l.head] = nil
		if l.head++; l.head == len(l.back) {
			l.back, l.head = l.back[:0], 0
		}
	}
	l.octets -= j.octets
	return j
}

// leastSpent is what the attempt that has used the least of its bounds has: the destination is
// tried for all that wait.
func (l *line) leastSpent() (least connect.Spent) {
	l.find(func(j *job) bool {
		if least.Begun.IsZero() || j.Tries < least.Tries {
			least = j.Spent
		}
		return j.Begun.IsZero()
	})
	return least
}

// drainOf takes out the jobs that are wanted.
func (l *line) drainOf(wanted func(*job) bool) []*job {
	var list []*job
	for _, j := range l.drain() {
		if wanted(j) {
			list = append(list, j)
		} else {
			l.push(j)
		}
	}
	return list
}

// drain empties the line and returns what was in it.
func (l *line) drain() []*job {
	var list []*job
	for j := l.pop(); j != nil; j = l.pop() {
		list = append(list, j)
	}
	*l = line{}
	return list
}
