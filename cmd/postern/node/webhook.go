package node

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"postern/admin"
	"postern/relay/webhook"
)

// webhooks makes what sends events to endpoints. It has connections of its own, so that mail does not
// wait for it.
func (n *Node) webhooks(ctx context.Context) (*webhook.Sender, *pgxpool.Pool, error) {
	reach, err := n.Config.Webhooks.Reach()
	if err != nil {
		return nil, nil, err
	}
	pool, err := n.pool(ctx, "webhooks", 2, nil)
	if err != nil {
		return nil, nil, err
	}
	return webhook.NewSender(webhook.Config{DB: pool, Sealer: n.keys.sealer, Reach: reach, Log: n.Log, Guard: n.guard}), pool, nil
}

// webhookTries is how many tries of a webhook had a result.
type webhookTries struct {
	webhook.Tries
	n int64
}

func (b *back) registerWebhooks(r *prometheus.Registry) {
	tries := func() (list []webhookTries) {
		for t, n := range b.hooks.Count() {
			list = append(list, webhookTries{t, n})
		}
		return list
	}
	admin.RegisterEach(r, []string{"result", "webhook"}, tries, func(t webhookTries) []string { return []string{t.Result, t.Webhook} }, []admin.Reading[webhookTries]{
		{Name: "postern_webhook_events_total", Help: "Events that were sent to a webhook by this node, by result: taken, failed (of each try), given_up.", Counter: true,
			Value: func(t webhookTries) float64 { return float64(t.n) }},
	})
	admin.RegisterEach(r, []string{"webhook"}, b.hookList.list, func(w webhook.Webhook) []string { return []string{w.Name} }, []admin.Reading[webhook.Webhook]{
		{Name: "postern_webhook_waiting", Help: "Events that wait for another try.", Value: func(w webhook.Webhook) float64 { return float64(w.Waiting) }},
		{Name: "postern_webhook_behind_seconds", Help: "The age of the oldest event that an active webhook has not had, or for how long the feed is held back.", Value: func(w webhook.Webhook) float64 {
			if w.State != webhook.Active {
				return 0
			}
			return w.Behind
		}},
		{Name: "postern_webhook_disabled", Help: "1 if the endpoint has disabled its webhook, else 0.", Value: func(w webhook.Webhook) float64 { return admin.Truth(w.State == webhook.Disabled) }},
	})
}
