import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(
  new URL('../../../../shared/data/stories260k/', import.meta.url),
);

/** The developers' data may be absent: such tests are skipped, and say so. */
export const STORIES = existsSync(folder);
export const WHY = STORIES ? '' : ' (skipped: no ../shared/data/stories260k)';

export const readStories = (name: string): unknown =>
  JSON.parse(readFileSync(folder + name, 'utf8'));
