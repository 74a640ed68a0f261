package delivery

import (
	"postern/relay/queue"
	"postern/relay/smtp"
)

// tooMany reports that recipient i was one too many for this transaction.
func (t *transaction) tooMany(i int) bool {
	return t.res.Withheld(i) || judge(t.replies, &t.res, i).InAnother()
}

// room is how many recipients the server takes in a transaction: as many as it has just accepted, if
// it wanted all after them in another one; else 0. If it put off only one, that one's mailbox may be
// full.
func (t *transaction) room() (accepted int) {
	tooMany := 0
	for i := range t.res.Replies {
		stage := t.res.Stages[i]
		switch {
		case t.res.Withheld(i):
		case judge(t.replies, &t.res, i).InAnother():
			tooMany++
		case stage != smtp.StageData && stage != smtp.StageDot:
		case tooMany > 0:
			return 0
		default:
			accepted++
		}
	}
	if tooMany == 0 || tooMany == 1 && !t.refusedAsTooMany() {
		return 0
	}
	return accepted
}

// refusedAsTooMany reports that DATA was refused after some recipients had been too many.
func (t *transaction) refusedAsTooMany() bool {
	tooMany, refused := false, false
	for i := range t.res.Replies {
		tooMany = tooMany || judge(t.replies, &t.res, i).InAnother()
		refused = refused || t.res.Stages[i] == smtp.StageData && t.res.Replies[i].IsPermanent()
	}
	return tooMany && refused && t.res.Err == nil
}

// further lists the recipients that get another transaction immediately, over the same
// connection: those that were too many where others were delivered, and those that the
// server's limits kept out of this one. Their number falls each time, so this ends. Where
// all were deferred, the next host may take all of them. Some servers refuse DATA because of
// those that were too many (Exim: recipients_max_reject); then all are sent again, fewer at a time.
func (t *transaction) further(j *job, outcomes []queue.Outcome) []queue.Recipient {
	anew := t.refusedAsTooMany()
	delivered, putOff := anew, false
	for i := range outcomes {
		if outcomes[i].Result == queue.Delivered {
			delivered = true
		} else if !t.res.Withheld(i) && t.goesOn(i) {
			putOff = true
		}
	}
	next := t.onward(j)
	if t.res.Err != nil || !delivered && putOff && next.HasNext() || accountRefused(t.replies, &t.res) != nil {
		return nil
	}
	rest := j.those(func(i int) bool {
		return t.res.Withheld(i) || delivered && judge(t.replies, &t.res, i).InAnother() || anew && t.res.Stages[i] == smtp.StageData
	})
	if len(rest) == len(outcomes) && !anew {
		return nil
	}
	return rest
}

// spareWithheld counts no attempt for recipients that were not sent to the server because of
// its limit. They come back soon, unless they wait for what others have met.
func (t *transaction) spareWithheld(outcomes []queue.Outcome) {
	for i := range outcomes {
		if t.res.Withheld(i) && outcomes[i].Result == queue.Deferred {
			outcomes[i].NotAnAttempt = true
			if outcomes[i].Scope == "" {
				outcomes[i].RetryIn = turnedAwayWait
			}
		}
	}
}
