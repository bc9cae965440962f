import type { Config } from 'vega-lite';

export const schema = 'https://vega.github.io/schema/vega-lite/v5.json';

/** One look for all plots; the fonts are those that every reader has. */
export const style: Config = {
  font: 'Helvetica, Arial, sans-serif',
  background: 'white',
  axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal' },
  legend: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal' },
  header: { labelFontSize: 12, labelFontWeight: 'bold' },
  view: { stroke: '#bbb' },
  line: { strokeWidth: 2 },
};
