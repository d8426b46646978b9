"""A report as PDF, by fpdf2, whose built-in fonts need no file and no system library."""

from fpdf import FPDF
from fpdf.enums import XPos, YPos
from fpdf.fonts import FontFace

from waypost.validator.report.facts import Report, Table

__all__ = ["as_pdf"]

FONT = "Helvetica"
SOFT, DARK, LINE = (91, 95, 107), (22, 24, 29), (228, 229, 234)
SPENT, SAVED = (79, 70, 229), (167, 220, 188)
CHART_MM, ROW_MM = 38.0, 6.0

# The built-in fonts know Latin-1 and no more.
_PLAIN = str.maketrans({"–": "-", "−": "-", "→": ">", "…": "...", "’": "'"})


def as_pdf(report: Report) -> bytes:
    """Return the report on A4."""
    pdf = FPDF(format="A4")
    pdf.set_margin(22)
    pdf.set_auto_page_break(auto=True, margin=20)
    pdf.set_title(_plain(f"{report.title}, {report.period}"))
    pdf.set_lang("en")
    pdf.add_page()
    _text(pdf, report.title, size=20, style="B")
    _text(pdf, report.period, size=10, colour=SOFT)
    pdf.ln(3)
    if report.is_simulated:
        told = "Simulated providers answered, so no money was spent."
        _text(pdf, told, size=10, colour=(138, 74, 4))
    _text(pdf, report.headline, size=13)
    pdf.ln(4)
    _figures(pdf, report)
    for sentence in report.sentences:
        _text(pdf, f"\u00b7  {sentence}", size=10)
        pdf.ln(1)
    _chart(pdf, report)
    for table in report.tables:
        _table(pdf, table)
    pdf.ln(6)
    _text(pdf, report.footnote, size=8, colour=SOFT)
    return bytes(pdf.output())


def _plain(text: str) -> str:
    return text.translate(_PLAIN).encode("latin-1", "replace").decode("latin-1")


def _text(
    pdf: FPDF, text: str, *, size: int, style: str = "", colour: tuple[int, int, int] = DARK
) -> None:
    pdf.set_font(FONT, style, size)
    pdf.set_text_color(*colour)
    pdf.multi_cell(0, size * 0.5, _plain(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")


def _figures(pdf: FPDF, report: Report) -> None:
    width = pdf.epw / len(report.figures)
    for size, colour, style, place in ((8, SOFT, "", 0), (13, DARK, "B", 1)):
        pdf.set_font(FONT, style, size)
        pdf.set_text_color(*colour)
        for figure in report.figures:
            pdf.cell(width, 6, _plain(figure[place]))
        pdf.ln(6)
    pdf.ln(3)


def _chart(pdf: FPDF, report: Report) -> None:
    _heading(pdf, "By the day", room=CHART_MM + 12)
    top = max((spent + max(saved, 0) for _, spent, saved in report.days), default=0) or 1
    step = pdf.epw / max(1, len(report.days))
    ground = pdf.get_y() + CHART_MM
    pdf.set_draw_color(*LINE)
    pdf.line(pdf.l_margin, ground, pdf.l_margin + pdf.epw, ground)
    pdf.set_font(FONT, "", 7)
    pdf.set_text_color(*SOFT)
    for place, (label, spent, saved) in enumerate(report.days):
        x, y = pdf.l_margin + place * step, ground
        for amount, colour in ((spent, SPENT), (max(saved, 0), SAVED)):
            height = CHART_MM * amount / top
            y -= height
            pdf.set_fill_color(*colour)
            if height:
                pdf.rect(x + step * 0.15, y, step * 0.7, height, style="F")
        if len(report.days) <= 10 or place % 5 == 0:
            pdf.text(x + step * 0.15, ground + 4, label)
    pdf.set_y(ground + 6)
    _text(pdf, "Dark: spent. Light: saved.", size=8, colour=SOFT)


def _heading(pdf: FPDF, title: str, *, room: float) -> None:
    if pdf.will_page_break(room):
        pdf.add_page()
    pdf.ln(5)
    _text(pdf, title, size=12, style="B")
    pdf.ln(1)


def _table(pdf: FPDF, table: Table) -> None:
    # On one page, as a table of twelve rows always fits.
    _heading(pdf, table.title, room=20 + ROW_MM * (len(table.rows) + 1))
    pdf.set_draw_color(*LINE)
    pdf.set_fill_color(255)  # or cells take the chart's
    pdf.set_font(FONT, "", 9)
    pdf.set_text_color(*DARK)
    figures = len(table.columns) - 1
    with pdf.table(
        borders_layout="HORIZONTAL_LINES",
        col_widths=(100 - 14 * figures, *[14] * figures),
        text_align=("LEFT", *["RIGHT"] * figures),
        headings_style=FontFace(emphasis="", color=SOFT),
        line_height=ROW_MM,
    ) as made:
        for row in (table.columns, *table.rows):
            made.row([_plain(cell) for cell in row])
    if table.note:
        _text(pdf, table.note, size=8, colour=SOFT)
