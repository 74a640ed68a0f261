package maillog

// Observer receives events, whatever level the log has, for counting them. A nil func is
// skipped. They are called by the goroutine that logs, often concurrently, and must neither
// block nor keep their arguments.
type Observer struct {
	Accepted      func(Accept)
	Duplicate     func(DuplicateEvent)
	Held          func(HeldEvent)
	Refused       func(Refusal)
	Attempt       func(AttemptEnd)
	Notice        func(NoticeEvent)
	NoticeLost    func(LostNoticeEvent)
	Auth          func(AuthEvent)
	SessionClosed func(Session)
	LimitNear     func(LimitEvent)
	Hold          func(HoldEvent)
	Released      func(HoldEvent)
}

// Observed returns a Logger that writes the same events and passes them to o as well.
func (l *Logger) Observed(o Observer) *Logger {
	return &Logger{log: l.log, told: o, repeats: l.repeats}
}

// tell calls f unless nobody listens.
func tell[E any](f func(E), event E) {
	if f != nil {
		f(event)
	}
}
