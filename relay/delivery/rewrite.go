package delivery

import (
	"io"

	surgery "postern/relay/message"
	"postern/relay/smtp"
)

// rewrite makes the transaction's sender and author the mailbox that the connection's upstream
// wants, if it wants one: in mail, and in what body gives. It returns the octets of that. The
// null sender stays: nobody is to be told of a notice's fate.
func (w *worker) rewrite(j *job, mail *smtp.MailCommand) (size int64, err error) {
	as := w.conn.sendsAs()
	if as.IsNull() {
		return j.size, nil
	}
	edits, utf8, err := surgery.Rewrite(io.NewSectionReader(j.Body, 0, j.size), as)
	if err != nil {
		return j.size, err
	}
	if !mail.From.IsNull() {
		mail.From = as
	}
	mail.UTF8 = mail.UTF8 && utf8
	size = j.size
	for _, e := range edits {
		size += int64(len(e.Put)) - e.Cut
	}
	w.body.edits = edits
	return size, nil
}

// sendsAs is the mailbox that sends in place of a message's own sender, null for none.
func (c *conn) sendsAs() smtp.Address {
	if c.Walk.Upstream == nil {
		return smtp.Address{}
	}
	return c.Walk.Upstream.SendsAs
}
