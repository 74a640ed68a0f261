package smtp

import "context"

// Ask has the server judge a sender: it says MAIL and, when that is accepted, RSET. The error is a
// *StageError, whose Reply is the server's refusal.
func (c *Client) Ask(ctx context.Context, from Address) error {
	defer c.watch(ctx)()
	c.mails++
	for _, line := range []string{string(MailCommand{From: from}.Append(nil)), "RSET"} {
		reply, err := c.command(ctx, StageMail, line)
		if err != nil {
			return err
		}
		if !reply.IsPositive() {
			return c.refused(ctx, StageMail, reply)
		}
	}
	return nil
}
