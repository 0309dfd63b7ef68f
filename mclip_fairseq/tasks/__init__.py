"""fairseq tasks: what a training step sees. Importing this package registers the plugin, because fairseq does."""

from mclip_fairseq.registration import register

register()
