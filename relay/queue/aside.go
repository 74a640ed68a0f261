package queue

import (
	"fmt"
	"math"
	"strings"
	"time"

	"postern/internal/pg"
	"postern/relay/smtp"
)

var sqlSetAside = texts.Bind("set_aside", "message_id", "n", "owner", "at", "reason", "node", "unknown", "lifetime")

// Mail whose rows are bad cannot be sent: a size below 0, a time that is infinite, a body of
// which octets are missing, an envelope with control characters. The schema keeps programs
// from writing such rows, but manual changes, repairs and damaged disks may. They are set
// aside: held, with the reason in the row, until a person has looked. A fault of ours must
// not bounce mail, nor delay anybody else's.

// textMissing is the reason to set aside mail whose body is not whole.
const textMissing = "octets of its text are missing"

// setAside sets a recipient aside that epoch owns (0: nobody owns it) and that nobody has in
// hand.
func (q *Queue) setAside(id ID, n int, epoch int64, why string) {
	q.end(ending{Outcome: Outcome{Message: id, N: n, Epoch: epoch, At: time.Now()}, release: true, aside: why})
}

// ofRows is the reason to set rows aside that the database fails at.
func ofRows(err error) string { return fmt.Sprintf("the database fails at its rows: %v", err) }

// halved works on a list. If that fails by a fault of an element, it tries the halves, until
// each bad element is alone and goes to bad.
func halved[T any](list []T, do func([]T) error, bad func(T, error)) error {
	err := do(list)
	switch {
	case len(list) == 0 || !pg.OfTheRow(err):
		return err
	case len(list) == 1:
		bad(list[0], err)
		return nil
	}
	half := len(list) / 2
	if err := halved(list[:half], do, bad); err != nil {
		return err
	}
	return halved(list[half:], do, bad)
}

// fault returns why a message cannot be sent, "" if it can.
func (m *loaded) fault() string {
	if why := m.envelopeFault(); why != "" || m.body != nil {
		return why
	}
	return textMissing
}

// envelopeFault returns why nobody can be told of a message, "" if somebody can.
func (m *loaded) envelopeFault() string {
	switch {
	case m.bad != "":
		return m.bad
	case m.Size < 0:
		return fmt.Sprintf("its size is %d", m.Size)
	case m.AcceptedAt.IsZero():
		return "its time of acceptance is not a time"
	case m.BodyType != "" && m.BodyType != smtp.Body8BitMIME:
		return "its body type is unknown"
	case m.Ret != "" && m.Ret != smtp.ReturnFull && m.Ret != smtp.ReturnHeaders:
		return "its RET is unknown"
	case hasControls(m.Sender.Local, m.Sender.Domain, m.EnvID) || m.Sender.Domain == "" && m.Sender.Local != "":
		return "its envelope is not valid"
	}
	return ""
}

// faultOf returns why a recipient cannot be sent to, "" if it can.
func faultOf(a smtp.Address, orcptType, orcpt string) string {
	if a.Domain == "" || hasControls(a.Local, a.Domain, orcptType, orcpt) {
		return "its address is not valid"
	}
	return ""
}

func hasControls(texts ...string) bool {
	for _, s := range texts {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return true
		}
	}
	return false
}

// spanOf converts seconds as the database counts them.
func spanOf(seconds float64) time.Duration {
	const most = float64(math.MaxInt64 / int64(time.Second))
	return time.Duration(min(max(seconds, -most), most) * float64(time.Second))
}
