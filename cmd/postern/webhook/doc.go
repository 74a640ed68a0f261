// Package webhook has the commands about webhooks: cobra commands on the store of relay/webhook, whose
// requests for 'webhook test' go from the machine that runs them.
package webhook
