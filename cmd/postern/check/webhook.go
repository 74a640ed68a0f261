package check

import (
	"context"
	"fmt"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/webhook"
)

var webhookKinds = []kind{
	{"webhook.disabled", health.Failed, "An endpoint answered 410, so its webhook is sent nothing.",
		"remove it with 'postern webhook remove', or send again with 'postern webhook enable'"},
	{"webhook.behind", health.Warning, "A webhook has not had events of more than an hour ago.",
		"see 'postern webhook show' for why its endpoint does not take them, and the nodes' logs"},
	{"webhook.gone", health.Warning, "Events were deleted before a webhook could be sent them, within the last seven days.",
		"raise [queue] history, or pause webhooks for less long"},
}

// webhooks looks for those that do not get what they should.
func (in *inspection) webhooks(ctx context.Context) error {
	list, err := (&webhook.Store{DB: in.conn}).List(ctx, "")
	if toldElsewhere(err) {
		return nil
	}
	for _, w := range list {
		subject := "webhook " + w.Name
		if w.State == webhook.Disabled {
			in.r.add("webhook.disabled", subject, "%s", w.Reason)
		}
		if behind := time.Duration(w.Behind) * time.Second; w.State == webhook.Active && behind > time.Hour {
			in.r.add("webhook.behind", subject, "%s behind, %s in a row failed%s", behind, screen.Count(w.Failures, "request"), waits(&w))
		}
		if w.GoneAt != nil && w.GoneUntil != nil && time.Since(*w.GoneAt) < 7*24*time.Hour {
			in.r.add("webhook.gone", subject, "events until %s", screen.LocalTime(*w.GoneUntil))
		}
	}
	return err
}

func waits(w *webhook.Webhook) (text string) {
	if w.Waiting > 0 {
		text = fmt.Sprintf(", %s waiting", screen.Count(w.Waiting, "event"))
	}
	if w.FeedHeld != nil {
		text += ", and a transaction holds back the feed: see feed.held"
	}
	return text
}
