import { writeFile } from 'node:fs/promises';
import { extname } from 'node:path';
import type { TopLevelSpec } from 'vega-lite';
import { UsageError } from '../exit';
import { note } from '../terminal';

/** Pixels of a PNG for one of the drawing. */
const resolution = 2;

const formats = ['.svg', '.png'];

/** Refuses a file that no plot can be written to, before the work begins. */
export function plotFile(path: string): string {
  if (formats.includes(extname(path).toLowerCase())) return path;
  throw new UsageError(`--plot: must end in .svg or .png, got ${path}`);
}

/** Draws a Vega-Lite chart into a file, by its ending as SVG or PNG. */
export async function writePlot(
  path: string,
  spec: TopLevelSpec,
): Promise<void> {
  const svg = await toSvg(spec);
  const isPng = extname(path).toLowerCase() === '.png';
  await writeFile(path, isPng ? await toPng(svg) : `${svg}\n`);
  note(`drew ${path}`);
}

// Imported here: they are large, and most runs draw nothing.
async function toSvg(spec: TopLevelSpec): Promise<string> {
  const [{ parse, View }, { compile }] = await Promise.all([
    import('vega'),
    import('vega-lite'),
  ]);
  const view = new View(parse(compile(spec).spec), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}

async function toPng(svg: string): Promise<Uint8Array> {
  const { Resvg } = await import('@resvg/resvg-js');
  const options = { fitTo: { mode: 'zoom' as const, value: resolution } };
  return new Resvg(svg, { background: 'white', ...options }).render().asPng();
}
