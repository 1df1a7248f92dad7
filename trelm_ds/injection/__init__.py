"""Where the vectors of entities and relations come from: one file a source, registered in `injection_sources`."""

from trelm_ds.injection.source import InjectionSource, SourceContext, fill_vectors

__all__ = ["InjectionSource", "SourceContext", "fill_vectors"]
